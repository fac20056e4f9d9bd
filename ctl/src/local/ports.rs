//! Which port is whose (protocols.md 1): the usual ones for peer 0, 10 more for each next peer.

use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use super::{LocalError, Result};

/// Each peer has ten ports to itself.
const STRIDE: u16 = 10;

/// What [`Ports::free`] gives out. Above it, up to the kernel's range, `--port-offset` has room in tests.
const FREE_FIRST: u16 = 10_000;
const FREE_BLOCKS: u16 = 200;
const BLOCK: u16 = 100;

static RESERVED: Mutex<Reserved> = Mutex::new(Reserved { locks: Vec::new(), tried: 0, left: 0..0 });

/// The blocks of ports that this process has to itself: each by a locked file, which the kernel lets go with the process.
struct Reserved {
    locks: Vec<File>,
    tried: u16,
    left: std::ops::Range<u16>,
}

impl Reserved {
    fn next(&mut self) -> std::io::Result<u16> {
        loop {
            if let Some(port) = self.left.next() {
                return Ok(port);
            }
            self.take_block()?;
        }
    }

    fn take_block(&mut self) -> std::io::Result<()> {
        let folder = std::env::temp_dir().join("pinfold-test-ports");
        std::fs::create_dir_all(&folder)?;
        while self.tried < FREE_BLOCKS {
            let block = self.tried;
            self.tried += 1;
            let file = File::options().create(true).append(true).open(folder.join(block.to_string()))?;
            match file.try_lock() {
                Ok(()) => {
                    let first = FREE_FIRST + block * BLOCK;
                    self.left = first..first + BLOCK;
                    self.locks.push(file);
                    return Ok(());
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "other tests hold all ports between 10000 and 30000"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub gateway: u16,
    pub consensus: u16,
    pub monitor: u16,
    pub connector: u16,
    pub metrics: [u16; 4],
    pub kubo_rpc: u16,
    pub kubo_swarm: u16,
}

impl Ports {
    /// The ports of peer `index`, all moved by `offset`.
    pub fn of(index: u16, offset: u16) -> Result<Ports> {
        let move_by = index.checked_mul(STRIDE).and_then(|own| own.checked_add(offset));
        let port = |base: u16| move_by.and_then(|by| base.checked_add(by));
        let all = || {
            Some(Ports {
                gateway: port(9094)?,
                consensus: port(9096)?,
                monitor: port(9098)?,
                connector: port(9099)?,
                metrics: [port(8888)?, port(8889)?, port(8890)?, port(8891)?],
                kubo_rpc: port(5001)?,
                kubo_swarm: port(4001)?,
            })
        };
        all()
            .ok_or_else(|| LocalError::new(format!("--port-offset {offset}: ports of peer {index} would exceed 65535")))
    }

    /// Ten ports that nobody uses now, for tests: below the range from which the kernel takes the near end of outgoing
    /// connections, never the same twice in one process, and in no other process that asks here while this one lives.
    pub fn free() -> std::io::Result<Ports> {
        let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ports = Vec::with_capacity(STRIDE.into());
        while ports.len() < STRIDE.into() {
            let port = reserved.next()?;
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                ports.push(port);
            }
        }
        Ok(Ports {
            gateway: ports[0],
            consensus: ports[1],
            monitor: ports[2],
            connector: ports[3],
            metrics: [ports[4], ports[5], ports[6], ports[7]],
            kubo_rpc: ports[8],
            kubo_swarm: ports[9],
        })
    }

    /// Says which of a peer's ports is taken before anything is started.
    pub fn check_free(&self, index: u16) -> Result<()> {
        for port in [self.gateway, self.consensus, self.monitor, self.connector].into_iter().chain(self.metrics) {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if let Err(error) = TcpListener::bind(address) {
                return Err(LocalError::new(match error.kind() {
                    std::io::ErrorKind::AddrInUse => format!(
                        "port {port} of peer {index} is in use by another program: stop that one, or give other ports with \
                         --port-offset"
                    ),
                    _ => format!("port {port} of peer {index} can't be used: {error}"),
                }));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: peer i has 10·i more, and a taken port is named.
    #[test]
    fn ports_of_peers() {
        assert_eq!(Ports::of(2, 0).unwrap().gateway, 9114);
        assert!(Ports::of(49, 60_000).is_err());
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut ports = Ports::free().unwrap();
        ports.monitor = held.local_addr().unwrap().port();
        let error = ports.check_free(1).unwrap_err().to_string();
        assert!(error.contains(&ports.monitor.to_string()) && error.contains("in use"), "{error}");
    }
}
