//! Whether a history is linearizable, CID by CID: each one is a register of {absent, pinned with these options at this
//! revision or, where the cluster moved a copy meanwhile, at a later one}. The search is the library's (Wing and Gong's algorithm with Lowe's improvements); here is what one
//! operation does to the register.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::Duration;

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History as Actions};
use todc_utils::specifications::Specification;

use crate::history::{Answer, Asked, Operation};

/// For all keys of one history together.
const BUDGET: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Register {
    /// The newest revision that anybody was told of this CID.
    newest: u64,
    pinned: Option<Pinned>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pinned {
    name: u64,
    /// `None`: written, and nobody was told the revision yet.
    revision: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    asked: Asked,
    answer: Option<Answer>,
}

struct Pinset;

impl Specification for Pinset {
    type State = Register;
    type Operation = Step;

    fn init() -> Register {
        Register::default()
    }

    fn apply(step: &Step, before: &Register) -> (bool, Register) {
        let next = match step.answer {
            None => unanswered(step.asked, before),
            Some(answer) => answered(step.asked, answer, before),
        };
        match next {
            Some(after) => (true, after),
            None => (false, before.clone()),
        }
    }
}

/// An operation of unknown outcome may do its work at any later time; one that never does is put at the very end.
fn unanswered(asked: Asked, before: &Register) -> Option<Register> {
    let pinned = match asked {
        Asked::Pin { name } => Some(Pinned { name, revision: None }),
        Asked::Unpin => None,
        Asked::Get => before.pinned.clone(),
    };
    Some(Register { newest: before.newest, pinned })
}

/// The register afterwards; `None`: the register cannot have answered this.
fn answered(asked: Asked, answer: Answer, before: &Register) -> Option<Register> {
    match (asked, answer) {
        (Asked::Pin { name }, Answer::Pinned { revision }) => {
            if revision.is_some_and(|revision| revision <= before.newest) {
                return None;
            }
            Some(Register { newest: revision.unwrap_or(before.newest), pinned: Some(Pinned { name, revision }) })
        }
        (Asked::Unpin, Answer::Unpinned) => {
            before.pinned.as_ref()?;
            Some(Register { newest: before.newest, pinned: None })
        }
        (Asked::Unpin | Asked::Get, Answer::NotThere) => before.pinned.is_none().then(|| before.clone()),
        (Asked::Get, Answer::Found { name, revision }) => {
            let pinned = before.pinned.as_ref().filter(|pinned| pinned.name == name)?;
            match (pinned.revision, revision) {
                // The cluster itself writes an entry anew when it lets an old holder go: what was asked for stays.
                (Some(known), Some(told)) if told != known && told <= before.newest => None,
                (None, Some(told)) if told <= before.newest => None,
                (known, told) => {
                    let revision = told.or(known);
                    let newest = revision.unwrap_or(before.newest).max(before.newest);
                    Some(Register { newest, pinned: Some(Pinned { name, revision }) })
                }
            }
        }
        // The load never records an answer of another kind than what was asked.
        (Asked::Pin { .. }, Answer::Unpinned | Answer::Found { .. } | Answer::NotThere)
        | (Asked::Unpin, Answer::Pinned { .. } | Answer::Found { .. })
        | (Asked::Get, Answer::Pinned { .. } | Answer::Unpinned) => None,
    }
}

/// The operations of one CID as the library takes them. A read that nobody answered says nothing and is left out.
fn actions(operations: &[Operation]) -> Vec<(usize, Action<Step>)> {
    let mut timed: Vec<(u64, usize, Action<Step>)> = Vec::new();
    for (process, operation) in operations.iter().enumerate() {
        let step = Step { asked: operation.asked, answer: operation.answered.map(|(_, answer)| answer) };
        let ended = match operation.answered {
            Some((at, _)) => at,
            None if operation.asked == Asked::Get => continue,
            None => u64::MAX,
        };
        timed.push((operation.called, process, Action::Call(step)));
        timed.push((ended, process, Action::Response(step)));
    }
    timed.sort_by_key(|(at, process, _)| (*at, *process));
    timed.into_iter().map(|(_, process, action)| (process, action)).collect()
}

/// The CIDs whose history no register can have.
fn violations(operations: Vec<Operation>) -> BTreeMap<u64, Vec<Operation>> {
    let mut by_key: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for operation in operations {
        by_key.entry(operation.key).or_default().push(operation);
    }
    by_key.retain(|_, operations| {
        let actions = actions(operations);
        !actions.is_empty() && !WGLChecker::<Pinset>::is_linearizable(Actions::from_actions(actions))
    });
    by_key
}

/// Panics with the history of a CID that is not linearizable, or when the search takes too long to say.
pub fn linearizable(operations: Vec<Operation>) {
    let keys = operations.iter().map(|operation| operation.key).collect::<BTreeSet<_>>().len();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(violations(operations)));
    let found = receiver.recv_timeout(BUDGET).unwrap_or_else(|_| panic!("{keys} keys are not checked in {BUDGET:?}"));
    if let Some((key, operations)) = found.iter().next() {
        let line = |operation: &Operation| {
            let Operation { peer, asked, called, answered, .. } = operation;
            format!("  {called} at peer {peer}: {asked:?} -> {answered:?}")
        };
        let lines: Vec<String> = operations.iter().map(line).collect();
        panic!("{} of {keys} CIDs are not linearizable; key {key}:\n{}", found.len(), lines.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;

    fn is_linearizable(history: &History) -> bool {
        violations(history.operations()).is_empty()
    }

    fn done(history: &History, asked: Asked, answer: Answer) {
        let open = history.call(0, 7, asked);
        history.answer(open, answer);
    }

    /// Goal: the check tells a stale read, a lost write, a write that comes back and a revision that goes back from what
    /// is allowed. A checker that takes everything would prove nothing.
    #[test]
    fn finds_what_a_register_cannot_do() {
        let pin = |name| Asked::Pin { name };
        let pinned = |revision| Answer::Pinned { revision: Some(revision) };
        let found = |name, revision| Answer::Found { name, revision: Some(revision) };
        let good = History::default();
        done(&good, Asked::Get, Answer::NotThere);
        done(&good, pin(1), pinned(10));
        done(&good, Asked::Get, found(1, 10));
        done(&good, Asked::Get, Answer::Found { name: 1, revision: None });
        done(&good, Asked::Get, found(1, 12));
        done(&good, Asked::Unpin, Answer::Unpinned);
        done(&good, Asked::Unpin, Answer::NotThere);
        assert!(is_linearizable(&good));

        let cases: [&[(Asked, Answer)]; 6] = [
            &[(pin(1), pinned(10)), (pin(2), pinned(11)), (Asked::Get, found(1, 10))],
            &[(pin(1), pinned(10)), (Asked::Get, Answer::NotThere)],
            &[(pin(1), pinned(10)), (Asked::Unpin, Answer::Unpinned), (Asked::Get, found(1, 10))],
            &[(pin(1), pinned(10)), (pin(2), pinned(9))],
            &[(pin(1), pinned(10)), (Asked::Get, found(1, 9))],
            &[(pin(1), pinned(10)), (Asked::Get, found(1, 11)), (Asked::Get, found(1, 10))],
        ];
        for case in cases {
            let history = History::default();
            for (asked, answer) in case {
                done(&history, *asked, *answer);
            }
            assert!(!is_linearizable(&history), "{case:?}");
        }
    }

    /// Goal: an operation of unknown outcome may have happened, late, or never; once seen it is never unseen.
    #[test]
    fn unknown_means_either_way() {
        let unknown = |history: &History| {
            let _never_answered = history.call(1, 7, Asked::Pin { name: 5 });
        };
        let seen = Answer::Found { name: 5, revision: Some(3) };
        for answers in [&[Answer::NotThere, Answer::NotThere][..], &[Answer::NotThere, seen], &[seen, seen]] {
            let history = History::default();
            unknown(&history);
            for answer in answers {
                done(&history, Asked::Get, *answer);
            }
            assert!(is_linearizable(&history), "{answers:?}");
        }
        let history = History::default();
        unknown(&history);
        done(&history, Asked::Get, seen);
        done(&history, Asked::Get, Answer::NotThere);
        assert!(!is_linearizable(&history));
    }
}
