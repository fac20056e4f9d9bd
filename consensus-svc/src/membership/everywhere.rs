//! What every peer pins names nobody, so no move empties a peer of it: before a peer is removed, each of these items must
//! be on one that stays (beh:B4.8). A walk over the pinset, a page at a time, which the leader's loop goes on with at each
//! look: it answers from what connectors say they hold, never from the absence of an answer.

use std::time::{Duration, Instant};

use pinfold_common::ids::cid_from_bytes;
use pinfold_common::{Error, Result};
use pinfold_proto::types;
use prost::Message as _;

use crate::core::{Core, unreadable};
use crate::pinset::PeerTable;
use crate::repin::holdings;
use crate::repin::plan::settle::{Copy, outlives};
use crate::repin::plan::{Standing, factors};

/// Entries of one page.
const PAGE: usize = 500;
/// The walk gives way to the leader's other removals after so long.
const PIECE: Duration = Duration::from_secs(1);
/// After a page with something that nobody else holds.
const PAUSE: Duration = Duration::from_secs(2);
/// What a finished walk has found counts for so long.
const FRESH: Duration = Duration::from_secs(600);

/// How far one leader has come with one peer.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// The last CID that was looked at.
    after: Vec<u8>,
    looked_at: u64,
    done_at: Option<Instant>,
    /// What stopped it, and when it may be looked at again.
    waits: Option<(Instant, Error)>,
}

impl Walk {
    /// Goes on for a while. `Ok`: all of them are on peers that stay, or not on this one.
    pub async fn go_on(&mut self, core: &Core, peers: &PeerTable, going: &types::Peer) -> Result<()> {
        if self.done_at.is_some_and(|at| at.elapsed() > FRESH) {
            *self = Walk::default();
        }
        if self.done_at.is_some() {
            return Ok(());
        }
        if let Some((until, error)) = &self.waits
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        self.waits = None;
        let started = Instant::now();
        while started.elapsed() < PIECE {
            let chunk = core.state.list(&self.after, PAGE, &[]).await.map_err(unreadable)?;
            let mut pins = Vec::new();
            for bytes in chunk.pins {
                let pin = types::Pin::decode(bytes)
                    .map_err(|error| Error::internal(format!("read what every peer pins: {error}")))?;
                self.looked_at += 1;
                pins.extend(factors(&pin).is_none().then_some(pin));
            }
            if let Err(error) = self.check(core, peers, going, &pins).await {
                self.waits = Some((Instant::now() + PAUSE, error.clone()));
                return Err(error);
            }
            match chunk.next {
                Some(next) => self.after = next,
                None => {
                    self.done_at = Some(Instant::now());
                    return Ok(());
                }
            }
        }
        Err(Error::unavailable(format!(
            "looking whether what every peer pins is also on another one: {} items looked at",
            self.looked_at
        )))
    }

    async fn check(&self, core: &Core, peers: &PeerTable, going: &types::Peer, pins: &[types::Pin]) -> Result<()> {
        let standings = core.repin.standings(peers);
        let mut left: Vec<&types::Pin> = pins.iter().collect();
        let stays = |peer: &&Vec<u8>| **peer != going.peer_id && peers.member(peer).is_some_and(|row| !row.removing);
        for peer in standings.live().filter(stays) {
            if left.is_empty() {
                return Ok(());
            }
            left = without_held(core, peers, peer, left).await;
        }
        if left.is_empty() {
            return Ok(());
        }
        let own = match standings.of(&going.peer_id) {
            Standing::Live | Standing::IpfsDown | Standing::Draining => {
                holdings::ask(core, peers, &going.peer_id, &left).await.unwrap_or_default()
            }
            Standing::Away | Standing::Gone => Vec::new(),
        };
        let own = own.into_iter().chain(std::iter::repeat(Copy::Unknown));
        let lost = left.iter().zip(own).find(|(_, own)| !outlives(*own, std::iter::empty()));
        match lost {
            None => Ok(()),
            Some((pin, _)) => Err(Error::unavailable(format!(
                "{} is pinned everywhere, and no peer that stays says that it holds it yet",
                cid_from_bytes(&pin.cid)?
            ))),
        }
    }
}

/// Those that `peer` does not say it holds.
async fn without_held<'a>(
    core: &Core,
    peers: &PeerTable,
    peer: &[u8],
    pins: Vec<&'a types::Pin>,
) -> Vec<&'a types::Pin> {
    match holdings::ask(core, peers, peer, &pins).await {
        Ok(copies) => {
            let answered = pins.into_iter().zip(copies);
            answered.filter(|(_, copy)| *copy != Copy::Held).map(|(pin, _)| pin).collect()
        }
        Err(error) => {
            tracing::debug!(%error, "ask a peer that stays what it holds");
            pins
        }
    }
}
