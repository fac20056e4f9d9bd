//! `ctl health graph`: who reaches whom, as DOT (spec/ctl.md A.9), whatever `--enc` says.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use pinfold_common::ids;
use pinfold_common::json::ConnectGraphJson;
use pinfold_proto::api::GraphRequest;

use crate::cli::HealthGraph;
use crate::client::{Client, Failure, Outcome};
use crate::output;

pub async fn run(client: &Client, arguments: HealthGraph) -> Outcome {
    let reply = client.cluster().graph(GraphRequest {}).await?.into_inner();
    let mut graph = ConnectGraphJson::try_from(&reply)?;
    if !arguments.all_ipfs_peers {
        keep_own_nodes(&mut graph);
    }
    let text = dot(&graph);
    match arguments.file {
        None => output::print(&text),
        Some(path) => {
            std::fs::write(&path, text).map_err(|error| Failure::local(format!("writing {}", path.display()), error))
        }
    }
}

/// Nodes that stand beside no peer of the cluster are many, and left out unless they are asked for.
fn keep_own_nodes(graph: &mut ConnectGraphJson) {
    let own: Vec<String> = graph.ipfs_links.keys().cloned().collect();
    for links in graph.ipfs_links.values_mut() {
        links.retain(|peer| own.contains(peer));
    }
}

struct Vertex<'a> {
    name: String,
    labels: (&'a str, String),
    group: &'a str,
    color: &'static str,
    shape: &'static str,
    is_doubled: bool,
}

impl Vertex<'_> {
    fn write(&self, text: &mut String) {
        let Vertex { name, labels: (first, second), group, color, shape, is_doubled } = self;
        let _ = write!(text, "{name} [label=< <B> {first} </B> <BR/> <B> {second} </B> > group=\"{group}\" ");
        let _ = write!(text, "color=\"{color}\" style=\"filled\" colorscheme=\"x11\" fontcolor=\"black\" ");
        let _ = write!(text, "fontname=\"Arial\" shape=\"{shape}\" ");
        text.push_str(if *is_doubled { "peripheries=\"2\" ]\n" } else { "]\n" });
    }
}

fn subgraph(text: &mut String, rank: &str, vertices: &[Vertex<'_>]) {
    let _ = write!(text, "subgraph  {{\nrank=\"{rank}\"\n");
    for vertex in vertices {
        vertex.write(text);
    }
    text.push_str("}\n\n");
}

fn dot(graph: &ConnectGraphJson) -> String {
    let peers = peers_of(graph);
    let nodes = nodes_of(graph);
    let name_in = |vertices: &[Vertex<'_>]| -> BTreeMap<String, String> {
        vertices.iter().map(|vertex| (vertex.group.to_owned(), vertex.name.clone())).collect()
    };
    let (peer_names, node_names) = (name_in(&peers), name_in(&nodes));
    let mut text = "digraph cluster {\n/* The nodes of the connectivity graph */\n".to_owned();
    text.push_str("/* The cluster-service peers */\n");
    subgraph(&mut text, "min", &peers);
    text.push_str("/* The ipfs peers */\n");
    subgraph(&mut text, "max", &nodes);
    text.push_str("/* Edges representing active connections in the cluster */\n");
    text.push_str("/* The connections among cluster-service peers */\n");
    for (from, links) in &graph.cluster_links {
        edges(&mut text, &peer_names[from], links.iter().filter_map(|to| peer_names.get(to)));
    }
    text.push_str("\n/* The connections between cluster peers and their ipfs daemons */\n");
    for peer in graph.cluster_links.keys() {
        match graph.cluster_to_ipfs.get(peer) {
            Some(node) => edges(&mut text, &peer_names[peer], node_names.get(node)),
            None => {
                let _ = writeln!(text, "{} -> {} [ style=\"dotted\" ]", peer_names[peer], node_names[peer]);
            }
        }
    }
    text.push_str("\n/* The swarm peer connections among ipfs daemons in the cluster */\n");
    for (from, links) in &graph.ipfs_links {
        edges(&mut text, &node_names[from], links.iter().filter_map(|to| node_names.get(to)));
    }
    text.push('}');
    text
}

fn edges<'a>(text: &mut String, from: &str, to: impl IntoIterator<Item = &'a String>) {
    for to in to {
        let _ = writeln!(text, "{from} -> {to}");
    }
}

/// Numbered in the order of their IDs, whatever their letter.
fn peers_of(graph: &ConnectGraphJson) -> Vec<Vertex<'_>> {
    let peers = graph.cluster_links.keys().enumerate().map(|(number, id)| {
        let is_contacted = *id == graph.cluster_id;
        let is_trusted = graph.cluster_trust_links.get(id).is_some_and(|trusted| *trusted);
        let letter = if is_trusted && !is_contacted { 'T' } else { 'C' };
        Vertex {
            name: format!("{letter}{number}"),
            labels: (graph.id_to_peername.get(id).map_or("", String::as_str), short(id)),
            group: id,
            color: if is_trusted || is_contacted { "orange" } else { "darkorange3" },
            shape: "box3d",
            is_doubled: is_contacted,
        }
    });
    peers.collect()
}

/// Those beside a peer, those that are linked from one, and a stand-in for each that did not answer.
fn nodes_of(graph: &ConnectGraphJson) -> Vec<Vertex<'_>> {
    let mut known: Vec<&String> = graph.ipfs_links.keys().chain(graph.ipfs_links.values().flatten()).collect();
    known.sort();
    known.dedup();
    let silent = graph.cluster_links.keys().filter(|peer| !graph.cluster_to_ipfs.contains_key(*peer));
    let nodes = known.into_iter().map(|id| (id, short(id), "turquoise3"));
    let stand_ins = silent.map(|id| (id, "Errored".to_owned(), "firebrick1"));
    let vertices = nodes.chain(stand_ins).enumerate().map(|(number, (group, second, color))| Vertex {
        name: format!("I{number}"),
        labels: ("IPFS", second),
        group,
        color,
        shape: "cylinder",
        is_doubled: false,
    });
    vertices.collect()
}

/// The first two characters and the last six.
fn short(id: &str) -> String {
    match (id.get(..2), id.len().checked_sub(6).and_then(|at| id.get(at..))) {
        (Some(first), Some(last)) => format!("{first}*{last}"),
        (_, _) => ids::shorten(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the example of spec/ctl.md A.9, to the byte, and no newline at its end.
    #[test]
    fn the_originals_picture() {
        let list = |ids: &[&str]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>();
        let [a, b, ipfs, far] =
            ["12D3KooWaaaaabcdef", "12D3KooWbbbbghijkl", "12D3KooWiiiimnopqr", "12D3KooWxxxxstuvwx"];
        let mut graph = ConnectGraphJson {
            cluster_id: a.to_owned(),
            id_to_peername: [(a.to_owned(), "node0".to_owned()), (b.to_owned(), "node1".to_owned())].into(),
            ipfs_links: [(ipfs.to_owned(), list(&[far]))].into(),
            cluster_links: [(a.to_owned(), list(&[b])), (b.to_owned(), list(&[]))].into(),
            cluster_trust_links: [(a.to_owned(), true), (b.to_owned(), true)].into(),
            cluster_to_ipfs: [(a.to_owned(), ipfs.to_owned())].into(),
        };
        let all = dot(&graph);
        assert!(all.contains("I0 -> I1\n}") && all.contains("12*stuvwx"), "{all}");
        keep_own_nodes(&mut graph);
        let expected = r#"digraph cluster {
/* The nodes of the connectivity graph */
/* The cluster-service peers */
subgraph  {
rank="min"
C0 [label=< <B> node0 </B> <BR/> <B> 12*abcdef </B> > group="12D3KooWaaaaabcdef" color="orange" style="filled" colorscheme="x11" fontcolor="black" fontname="Arial" shape="box3d" peripheries="2" ]
T1 [label=< <B> node1 </B> <BR/> <B> 12*ghijkl </B> > group="12D3KooWbbbbghijkl" color="orange" style="filled" colorscheme="x11" fontcolor="black" fontname="Arial" shape="box3d" ]
}

/* The ipfs peers */
subgraph  {
rank="max"
I0 [label=< <B> IPFS </B> <BR/> <B> 12*mnopqr </B> > group="12D3KooWiiiimnopqr" color="turquoise3" style="filled" colorscheme="x11" fontcolor="black" fontname="Arial" shape="cylinder" ]
I1 [label=< <B> IPFS </B> <BR/> <B> Errored </B> > group="12D3KooWbbbbghijkl" color="firebrick1" style="filled" colorscheme="x11" fontcolor="black" fontname="Arial" shape="cylinder" ]
}

/* Edges representing active connections in the cluster */
/* The connections among cluster-service peers */
C0 -> T1

/* The connections between cluster peers and their ipfs daemons */
C0 -> I0
T1 -> I1 [ style="dotted" ]

/* The swarm peer connections among ipfs daemons in the cluster */
}"#;
        assert_eq!(dot(&graph), expected);
    }
}
