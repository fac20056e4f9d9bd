//! The one place where a caller is let in or not (protocols.md 1): the service's audience is looked up in the table
//! that the build read from the `.proto` files, the caller's peer ID is that of its certificate's key, and whether it
//! is a member is asked of `Members`. Handlers find the caller as a `Caller` in the request's extensions. Before that,
//! the two sides must speak the same wire version (protocols.md 10), whoever they are: also the services of one peer.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use pinfold_proto::{AUDIENCES, Audience};
use tower::{Layer, Service};

use crate::channel::AGENT_PREFIX;
use crate::tls::Tls;
use crate::{Code, Error, PeerId};

/// The peer a request came from: `request.extensions().get::<Caller>()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub PeerId);

/// What this peer knows about another one's membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Member,
    /// Not in the peerset as this peer knows it; this peer may be behind.
    Unknown,
    /// The log says that it is gone.
    Removed,
}

/// Who is a member, now. Asked on each request: answers from memory.
pub trait Members: Send + Sync + 'static {
    fn standing(&self, peer: &PeerId) -> Standing;
}

/// The caller of a request, or an error when it did not come over this cluster's mTLS.
pub fn caller<T>(request: &tonic::Request<T>) -> crate::Result<PeerId> {
    request.extensions().get::<Caller>().map(|caller| caller.0).ok_or_else(unauthenticated)
}

/// Put into the extensions of each request by the connection it came on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectedPeer(pub(crate) PeerId);

#[derive(Clone)]
pub struct AudienceLayer {
    own: PeerId,
    wire_version: Arc<str>,
    members: Arc<dyn Members>,
}

impl AudienceLayer {
    pub fn new(tls: &Tls, members: Arc<dyn Members>) -> AudienceLayer {
        AudienceLayer { own: tls.own(), wire_version: tls.wire_version().into(), members }
    }

    /// Whether the caller speaks what this process speaks. Both versions are named: a person must see which is old.
    fn check_version(&self, headers: &http::HeaderMap, peer: &PeerId) -> Result<(), Error> {
        let agent = headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let version = agent.strip_prefix(AGENT_PREFIX).and_then(|rest| rest.split(' ').next());
        if version == Some(&*self.wire_version) {
            return Ok(());
        }
        let theirs = version.map_or_else(
            || "no wire version".to_owned(),
            |version| format!("wire version {}", crate::ids::shorten(version)),
        );
        Err(Error::new(
            Code::Incompatible,
            format!(
                "peer {peer} speaks {theirs}, and peer {} speaks wire version {}: run the same release on both",
                self.own, self.wire_version
            ),
        ))
    }

    /// Whether that peer may call that path (`/package.Service/Method`).
    fn check(&self, path: &str, peer: &PeerId) -> Result<(), Error> {
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        // Health and reflection are not ours and declare nothing: for members.
        let declared = AUDIENCES.iter().find(|(name, _)| *name == service);
        match declared.map_or(Audience::Member, |(_, audience)| *audience) {
            Audience::Own if *peer == self.own => Ok(()),
            Audience::Own => Err(Error::new(
                Code::PermissionDenied,
                format!("{service} is for the services of peer {} only, and the caller is {peer}", self.own),
            )),
            Audience::Member if *peer == self.own => Ok(()),
            Audience::Member => match self.members.standing(peer) {
                Standing::Member => Ok(()),
                Standing::Unknown => Err(Error::new(
                    Code::UnknownMember,
                    format!("peer {peer} is not in the peerset as peer {} knows it", self.own),
                )),
                Standing::Removed => {
                    Err(Error::new(Code::Removed, format!("peer {peer} was removed from this cluster")))
                }
            },
            // The verified certificate says it all; what a Raft message further needs, its handler looks up.
            Audience::Raft | Audience::Joining => Ok(()),
            // The gateway authenticates those by itself. Here a certificate would stand in for credentials.
            Audience::Public => Err(Error::new(
                Code::PermissionDenied,
                format!("{service} is served on the gateway's public port only"),
            )),
        }
    }
}

fn unauthenticated() -> Error {
    Error::new(Code::Unauthenticated, "the caller shows no certificate of this cluster")
}

impl<S> Layer<S> for AudienceLayer {
    type Service = AudienceService<S>;

    fn layer(&self, inner: S) -> AudienceService<S> {
        AudienceService { layer: self.clone(), inner }
    }
}

#[derive(Clone)]
pub struct AudienceService<S> {
    layer: AudienceLayer,
    inner: S,
}

impl<S, B, R> Service<http::Request<B>> for AudienceService<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    R: Default,
{
    type Response = http::Response<R>;
    type Error = S::Error;
    type Future = Either<Ready<Result<http::Response<R>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let checked = match request.extensions().get::<ConnectedPeer>() {
            Some(ConnectedPeer(peer)) => {
                let same = self.layer.check_version(request.headers(), peer);
                same.and_then(|()| self.layer.check(request.uri().path(), peer)).map(|()| *peer)
            }
            None => Err(unauthenticated()),
        };
        match checked {
            Ok(peer) => {
                request.extensions_mut().insert(Caller(peer));
                Either::Right(self.inner.call(request))
            }
            Err(error) => {
                metrics::counter!("pinfold_refused_requests_total", "reason" => error.code.name()).increment(1);
                tracing::debug!(path = request.uri().path(), %error, "refused a request");
                Either::Left(ready(Ok(tonic::Status::from(error).into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    struct Fixed(Vec<(PeerId, Standing)>);

    impl Members for Fixed {
        fn standing(&self, peer: &PeerId) -> Standing {
            self.0.iter().find(|(known, _)| known == peer).map_or(Standing::Unknown, |(_, standing)| *standing)
        }
    }

    /// Goal: the whole table of audience against caller.
    #[test]
    fn who_may_call_what() {
        let [own, member, removed, unknown] = std::array::from_fn(|_| Identity::generate().peer_id);
        let members = Fixed(vec![(member, Standing::Member), (removed, Standing::Removed), (own, Standing::Removed)]);
        let layer = AudienceLayer { own, wire_version: pinfold_proto::WIRE_VERSION.into(), members: Arc::new(members) };
        let code = |service: &str, peer: &PeerId| layer.check(&format!("/{service}/Any"), peer).err().map(|e| e.code);
        for (service, expected) in [
            (
                "pinfold.consensus.v1.Pins",
                [None, Some(Code::PermissionDenied), Some(Code::PermissionDenied), Some(Code::PermissionDenied)],
            ),
            ("pinfold.monitor.v1.Gossip", [None, None, Some(Code::Removed), Some(Code::UnknownMember)]),
            ("grpc.health.v1.Health", [None, None, Some(Code::Removed), Some(Code::UnknownMember)]),
            ("pinfold.consensus.v1.Raft", [None; 4]),
            ("pinfold.consensus.v1.Membership", [None; 4]),
            ("pinfold.api.v1.Pins", [Some(Code::PermissionDenied); 4]),
        ] {
            let found = [own, member, removed, unknown].map(|peer| code(service, &peer));
            assert_eq!(found, expected, "{service}");
        }
    }

    /// Goal: every service that is served between peers is in the table under the name it is called by.
    #[test]
    fn services_of_the_table_exist() {
        for name in [
            "pinfold.consensus.v1.Pins",
            "pinfold.consensus.v1.Peers",
            "pinfold.consensus.v1.Forward",
            "pinfold.monitor.v1.Monitor",
            "pinfold.connector.v1.Node",
            "pinfold.connector.v1.Tracker",
        ] {
            assert!(AUDIENCES.iter().any(|(known, _)| *known == name), "{name}");
        }
    }
}
