//! A network of namespaces: each peer in one of its own, joined by a bridge in one more, and this process at its edge as
//! the place of the clients. Packets are dropped by nftables, and its counters prove that they were.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use pinfold_tests::process;

use crate::disk::run;

/// Names of what this makes begin so, and go on with the process that made it: what a killed run left can be found.
const PREFIX: &str = "pinfold-";
const TABLE: &str = "pinfold";

/// Which way packets of the others are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Both,
    /// It hears nobody, and everybody hears it.
    In,
    /// Nobody hears it.
    Out,
}

pub struct Network {
    name: String,
    /// This process's end of the bridge.
    edge: String,
    subnet: [u8; 3],
    peers: usize,
}

impl Network {
    pub fn new(peers: usize) -> Network {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        // 198.18.0.0/15 is for tests of networks. Two runs at once differ in the process, two networks of one in the rest.
        let [_, _, high, low] = process.to_be_bytes();
        let subnet = [198, 18 + (high & 1), low.wrapping_add(number)];
        let network = Network {
            name: format!("{PREFIX}{process}-{number}"),
            edge: format!("pf{process}n{number}"),
            subnet,
            peers,
        };
        network.build();
        network
    }

    fn build(&self) {
        let bridge = self.bridge();
        ip(&["netns", "add", &bridge]);
        ip(&["-n", &bridge, "link", "add", "bridge", "type", "bridge"]);
        ip(&["-n", &bridge, "link", "set", "bridge", "up"]);
        ip(&["link", "add", &self.edge, "type", "veth", "peer", "name", "edge", "netns", &bridge]);
        ip(&["-n", &bridge, "link", "set", "edge", "master", "bridge", "up"]);
        ip(&["addr", "add", &format!("{}/24", self.address_of(253)), "dev", &self.edge]);
        ip(&["link", "set", &self.edge, "up"]);
        for peer in 0..self.peers {
            let (space, port) = (self.space(peer), format!("peer{peer}"));
            ip(&["netns", "add", &space]);
            ip(&["-n", &space, "link", "set", "lo", "up"]);
            ip(&["-n", &space, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &bridge]);
            ip(&["-n", &bridge, "link", "set", &port, "master", "bridge", "up"]);
            ip(&["-n", &space, "addr", "add", &format!("{}/24", self.address(peer)), "dev", "eth0"]);
            ip(&["-n", &space, "link", "set", "eth0", "up"]);
        }
    }

    fn bridge(&self) -> String {
        format!("{}-bridge", self.name)
    }

    fn space(&self, peer: usize) -> String {
        format!("{}-{peer}", self.name)
    }

    fn address_of(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, host)
    }

    pub fn address(&self, peer: usize) -> Ipv4Addr {
        self.address_of(u8::try_from(peer + 1).expect("few peers"))
    }

    /// Writes a program into `folder` that starts `program` inside the peer's namespace, as the same process.
    pub fn wrap(&self, peer: usize, program: &Path, folder: &Path) {
        let through = format!("exec ip netns exec {}", self.space(peer));
        process::wrap(folder, program, &through).expect("a script");
    }

    /// Drops what goes between `peer` and each of `others`. Clients still reach it.
    pub fn drop_packets(&self, peer: usize, others: &[usize], direction: Direction) {
        let mut rules = format!(
            "table inet {TABLE} {{ chain in {{ type filter hook input priority 0; }}; chain out {{ type filter hook output priority 0; }}; }}\n"
        );
        for other in others {
            let address = self.address(*other);
            if direction != Direction::Out {
                rules.push_str(&format!("add rule inet {TABLE} in ip saddr {address} counter drop\n"));
            }
            if direction != Direction::In {
                rules.push_str(&format!("add rule inet {TABLE} out ip daddr {address} counter drop\n"));
            }
        }
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), rules).expect("rules");
        run(self.nft(peer).arg("-f").arg(file.path()));
    }

    /// How many packets were dropped at the peer since then.
    pub fn dropped(&self, peer: usize) -> u64 {
        let listed = self.nft(peer).args(["list", "table", "inet", TABLE]).output().expect("nft runs");
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let mut words = text.split_whitespace();
        let mut packets = 0;
        while words.by_ref().any(|word| word == "packets") {
            packets += words.next().and_then(|count| count.parse::<u64>().ok()).unwrap_or_default();
        }
        packets
    }

    pub fn heal(&self, peer: usize) {
        run(self.nft(peer).args(["delete", "table", "inet", TABLE]));
    }

    fn nft(&self, peer: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(peer), "nft"]);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

/// Takes away all namespaces whose names begin so; their interfaces go with them, this process's end too.
fn remove(name: &str) {
    for space in spaces().iter().filter(|space| space.starts_with(&format!("{name}-"))) {
        let removed = Command::new("ip").args(["netns", "delete", space]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("the namespace {space} stays: ip netns delete {space}");
        }
    }
}

fn spaces() -> Vec<String> {
    let listed = Command::new("ip").args(["netns", "list"]).output();
    let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Removes what runs left that were killed: names of processes that are not there any more.
fn sweep() {
    for space in spaces() {
        let process =
            space.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|id| id.parse::<u32>().ok());
        if let Some(process) = process.filter(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            remove(&format!("{PREFIX}{process}"));
        }
    }
}
