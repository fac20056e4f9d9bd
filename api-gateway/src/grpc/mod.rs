//! The public gRPC API, `pinfold.api.v1`, with health and reflection, on the port of REST. Handlers decode, ask
//! `cluster` or `fanout`, and encode; authentication is done before a request comes here.

mod add;
mod cluster;
mod pins;
mod repin;
mod state;

use std::sync::Arc;

use pinfold_common::channel::MAX_MESSAGE_BYTES;
use pinfold_common::shutdown::Shutdown;
use pinfold_common::{Error, Result};
use pinfold_proto::DESCRIPTORS;
use pinfold_proto::api::add_server::AddServer;
use pinfold_proto::api::cluster_server::ClusterServer;
use pinfold_proto::api::pins_server::PinsServer;
use pinfold_proto::api::repin_server::RepinServer;
use pinfold_proto::api::state_server::StateServer;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::adder::AddContext;
use crate::cluster::Cluster;

/// What the public may know of: reflection does not show the services between the rooms.
const PUBLIC_SERVICES: [&str; 5] = [
    "pinfold.api.v1.Cluster",
    "pinfold.api.v1.Pins",
    "pinfold.api.v1.Add",
    "pinfold.api.v1.Repin",
    "pinfold.api.v1.State",
];

/// All services of the public port.
pub fn routes(cluster: &Arc<Cluster>, add: AddContext, shutdown: Shutdown) -> Result<Routes> {
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(cluster.clone(), reporter, shutdown));
    let cluster_service = ClusterServer::new(cluster::ClusterApi::new(cluster.clone()));
    let pins_service = PinsServer::new(pins::PinsApi::new(cluster.clone()));
    let state_service = StateServer::new(state::StateApi::new(cluster.clone()));
    let add_service = AddServer::new(add::AddApi::new(cluster.clone(), add));
    let repin_service = RepinServer::new(repin::RepinApi::new(cluster.clone()));
    let mut routes = Routes::new(cluster_service.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(pins_service.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(state_service.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(add_service.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(repin_service.max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(health);
    let failed = |error| Error::internal(format!("build reflection: {error}"));
    routes = routes.add_service(reflection().build_v1().map_err(failed)?);
    // Older tools ask for the older version only.
    routes = routes.add_service(reflection().build_v1alpha().map_err(failed)?);
    Ok(routes.prepare())
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health");
    PUBLIC_SERVICES.into_iter().fold(builder, |builder, name| builder.with_service_name(name))
}

/// Keeps the health service at what consensus-svc says of itself; an empty name stands for the whole peer.
async fn report_health(cluster: Arc<Cluster>, reporter: HealthReporter, shutdown: Shutdown) {
    let mut views = cluster.peers.subscribe();
    loop {
        let is_ready = views.borrow_and_update().ready;
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in PUBLIC_SERVICES.into_iter().chain([""]) {
            reporter.set_service_status(name, status).await;
        }
        match shutdown.race(views.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}
