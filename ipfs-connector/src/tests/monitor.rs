//! A monitor-svc that only remembers what it was told.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pinfold_common::peerset::{PeersHandle, View};
use pinfold_common::server;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::tls::Tls;
use pinfold_proto::monitor::monitor_server::{self, MonitorServer};
use pinfold_proto::monitor::{
    AlertsCall, AlertsReply, AllocateReply, AllocateRequest, ContactReport, ContactsReply, LatestMetricsCall,
    LatestMetricsReply, MetricNamesCall, MetricNamesReply, PublishCall, PublishReply, VerdictsCall, VerdictsReply,
};
use pinfold_proto::types::{IpfsId, Metric};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};

#[derive(Default)]
struct State {
    metrics: BTreeMap<String, Metric>,
    /// How often each was published.
    counts: BTreeMap<String, u32>,
    ipfs: Option<IpfsId>,
}

/// Clones share the memory.
#[derive(Clone, Default)]
pub struct Monitor(Arc<Mutex<State>>);

impl Monitor {
    pub fn names(&self) -> Vec<String> {
        self.0.lock().metrics.keys().cloned().collect()
    }

    pub fn count(&self, name: &str) -> u32 {
        self.0.lock().counts.get(name).copied().unwrap_or(0)
    }

    pub fn get(&self, name: &str) -> Option<Metric> {
        self.0.lock().metrics.get(name).cloned()
    }

    pub fn knows_ipfs(&self) -> bool {
        self.0.lock().ipfs.as_ref().is_some_and(|ipfs| !ipfs.id.is_empty() && ipfs.error.is_empty())
    }

    /// As a restart does.
    pub fn forget(&self) {
        *self.0.lock() = State::default();
    }
}

pub async fn serve(monitor: Monitor, tls: Arc<Tls>, stop: Shutdown) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let routes = tonic::service::Routes::new(MonitorServer::new(monitor));
    let members = Arc::new(PeersHandle::fixed(View::default()));
    tokio::spawn(server::serve(listener, tls, members, routes, stop));
    address
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this stand-in only remembers"))
}

#[tonic::async_trait]
impl monitor_server::Monitor for Monitor {
    async fn publish(&self, request: Request<PublishCall>) -> Result<Response<PublishReply>, Status> {
        let PublishCall { metrics, ipfs, .. } = request.into_inner();
        let mut state = self.0.lock();
        for metric in &metrics {
            *state.counts.entry(metric.name.clone()).or_default() += 1;
        }
        state.metrics.extend(metrics.into_iter().map(|metric| (metric.name.clone(), metric)));
        if ipfs.is_some() {
            state.ipfs = ipfs;
        }
        Ok(Response::new(PublishReply {}))
    }

    async fn latest_metrics(
        &self,
        request: Request<LatestMetricsCall>,
    ) -> Result<Response<LatestMetricsReply>, Status> {
        let own = self.0.lock().metrics.get(&request.into_inner().name).cloned();
        Ok(Response::new(LatestMetricsReply { metrics: own.into_iter().collect() }))
    }

    async fn contacts(&self, _: Request<Streaming<ContactReport>>) -> Result<Response<ContactsReply>, Status> {
        not_here()
    }

    async fn allocate(&self, _: Request<AllocateRequest>) -> Result<Response<AllocateReply>, Status> {
        not_here()
    }

    async fn metric_names(&self, _: Request<MetricNamesCall>) -> Result<Response<MetricNamesReply>, Status> {
        not_here()
    }

    async fn verdicts(&self, _: Request<VerdictsCall>) -> Result<Response<VerdictsReply>, Status> {
        not_here()
    }

    async fn alerts(&self, _: Request<AlertsCall>) -> Result<Response<AlertsReply>, Status> {
        not_here()
    }
}
