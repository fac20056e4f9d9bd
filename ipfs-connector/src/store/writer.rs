//! The one task that writes. It takes what waits in its queue, up to a bound, into one transaction: a thousand small
//! writes cost one commit. Everybody is answered after the commit.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pinfold_common::status::TrackerStatus;
use pinfold_proto::consensus::Cursor;
use prost::Message as _;
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::rows::{self, Statements};
use super::{
    Change, Command, DISOWN_CHUNK, Policy, Reply, SWEEP_CHUNK, Settlement, Shared, Source, Swept, Touched, failed,
    now_ms, rules, schema,
};
use crate::error::{ConnectorError, Result};
use crate::tracker::operation::{self, Class, Item, Rules};

/// Commands in one transaction.
const GROUP_COMMANDS: usize = 512;
/// Between the beginnings of two transactions while there is always something to write: what comes within it shares
/// one. An idle writer writes at once.
const PACE: Duration = Duration::from_millis(5);
/// The same after a transaction of so many commands: nobody waits for one of them alone.
const BUSY_PACE: Duration = Duration::from_millis(20);
const BUSY_COMMANDS: usize = 4;

pub(super) struct Writer {
    connection: SqliteConnection,
    statements: Arc<Statements>,
    shared: Arc<Shared>,
    policy: Policy,
    effects: Effects,
}

/// What becomes true for everybody else when the transaction is committed.
#[derive(Default)]
struct Effects {
    counts: HashMap<TrackerStatus, i64>,
    cursor: Option<Cursor>,
    rebuilt_index: Option<u64>,
    node: Option<Vec<u8>>,
}

impl Effects {
    fn moved(&mut self, from: Option<TrackerStatus>, to: Option<TrackerStatus>) {
        if from == to {
            return;
        }
        if let Some(status) = from {
            *self.counts.entry(status).or_default() -= 1;
        }
        if let Some(status) = to {
            *self.counts.entry(status).or_default() += 1;
        }
    }
}

/// An answer that waits for the commit.
enum Answer {
    Touched(Reply<Vec<Touched>>, Vec<Touched>),
    Swept(Reply<Swept>, Swept),
    Settled(Reply<Vec<bool>>, Vec<bool>),
    Disowned(Reply<Option<i64>>, Option<i64>),
    Done(Reply<()>),
}

impl Answer {
    fn send(self, failure: Option<&ConnectorError>) {
        // Who does not wait any more needs no answer.
        match self {
            Answer::Touched(reply, touched) => {
                drop(reply.send(failure.map_or(Ok(touched), |error| Err(error.clone()))))
            }
            Answer::Swept(reply, swept) => drop(reply.send(failure.map_or(Ok(swept), |error| Err(error.clone())))),
            Answer::Settled(reply, done) => drop(reply.send(failure.map_or(Ok(done), |error| Err(error.clone())))),
            Answer::Disowned(reply, last) => drop(reply.send(failure.map_or(Ok(last), |error| Err(error.clone())))),
            Answer::Done(reply) => drop(reply.send(failure.map_or(Ok(()), |error| Err(error.clone())))),
        }
    }
}

impl Writer {
    pub fn new(
        connection: SqliteConnection,
        statements: Arc<Statements>,
        shared: Arc<Shared>,
        policy: Policy,
    ) -> Writer {
        Writer { connection, statements, shared, policy, effects: Effects::default() }
    }

    /// Ends when nobody can send a command any more.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut group = Vec::with_capacity(GROUP_COMMANDS);
        let mut next = Instant::now();
        while queue.recv_many(&mut group, GROUP_COMMANDS).await > 0 {
            if next > Instant::now() {
                tokio::time::sleep_until(next).await;
                while group.len() < GROUP_COMMANDS
                    && let Ok(more) = queue.try_recv()
                {
                    group.push(more);
                }
            }
            next = Instant::now() + if group.len() < BUSY_COMMANDS { PACE } else { BUSY_PACE };
            let mut answers = Vec::new();
            let written = self.write(std::mem::take(&mut group), &mut answers).await;
            let effects = std::mem::take(&mut self.effects);
            match &written {
                Ok(()) => self.publish(effects),
                Err(error) => {
                    tracing::error!(%error, "write to the tracker's table; what was not written is done again");
                }
            }
            for answer in answers {
                answer.send(written.as_ref().err());
            }
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "close the tracker's table");
        }
    }

    fn publish(&self, effects: Effects) {
        for (status, change) in effects.counts {
            self.shared.counts.add(status, change);
        }
        if let Some(index) = effects.rebuilt_index {
            self.shared.rebuilt_index.store(index, Ordering::Relaxed);
        }
        if let Some(node) = effects.node {
            *self.shared.node.lock() = Some(node);
        }
        if let Some(cursor) = effects.cursor {
            let index = cursor.index;
            *self.shared.cursor.lock() = Some(cursor);
            self.shared.position.send_replace(index);
        }
    }

    async fn write(&mut self, group: Vec<Command>, answers: &mut Vec<Answer>) -> Result<()> {
        let steps = steps(group);
        // Settlements are one statement, or several that need not be one: each row stands for itself.
        let whole = !steps.iter().all(|step| matches!(step, Step::Settle { .. }));
        let mut written = if whole { self.run_sql("BEGIN IMMEDIATE", "begin").await } else { Ok(()) };
        for step in steps {
            // Every command has an answer, also those that come after a failure.
            written = self.step(step, written, answers).await;
        }
        match written {
            Ok(()) if whole => self.run_sql("COMMIT", "commit").await,
            Ok(()) => Ok(()),
            Err(error) => {
                if whole {
                    // SQLite may have rolled back by itself; then this one fails, and that is as good.
                    let _ = self.run_sql("ROLLBACK", "roll back").await;
                }
                Err(error)
            }
        }
    }

    async fn run_sql(&mut self, text: &'static str, doing: &'static str) -> Result<()> {
        sqlx::query(text).execute(&mut self.connection).await.map(|_| ()).map_err(failed(doing))
    }

    /// Does one step, unless something failed before it.
    async fn step(&mut self, step: Step, before: Result<()>, answers: &mut Vec<Answer>) -> Result<()> {
        match step {
            Step::Settle { settlements, replies } => {
                let settled = match before {
                    Ok(()) => self.settle(&settlements).await,
                    Err(error) => Err(error),
                };
                let (done, result) = split(settled);
                for (reply, range) in replies {
                    answers.push(Answer::Settled(reply, done.get(range).unwrap_or_default().to_vec()));
                }
                result
            }
            Step::Other(Command::Follow { changes, cursor, source, reply }) => {
                let followed = match before {
                    Ok(()) => self.follow(changes, cursor, source).await,
                    Err(error) => Err(error),
                };
                let (touched, result) = split(followed);
                answers.push(Answer::Touched(reply, touched));
                result
            }
            Step::Other(Command::Sweep { after, through, keep, index, reply }) => {
                let swept = match before {
                    Ok(()) => self.sweep(&after, through.as_deref(), &keep, index).await,
                    Err(error) => Err(error),
                };
                let (swept, result) = split(swept);
                answers.push(Answer::Swept(reply, swept));
                result
            }
            Step::Other(Command::EndComparison { cursor, hold, reply }) => {
                answers.push(Answer::Done(reply));
                before?;
                match hold {
                    Some(why) => self.hold(&why).await?,
                    None => self.release().await?,
                }
                self.set_cursor(cursor).await
            }
            Step::Other(Command::Release { reply }) => {
                answers.push(Answer::Done(reply));
                before?;
                self.release().await
            }
            Step::Other(Command::RebuiltUpTo { index, reply }) => {
                answers.push(Answer::Done(reply));
                before?;
                schema::set_meta(&mut self.connection, schema::REBUILT_KEY, &index.to_be_bytes()).await?;
                self.effects.rebuilt_index = Some(index);
                Ok(())
            }
            Step::Other(Command::Disown { after, why, reply }) => {
                let disowned = match before {
                    Ok(()) => rows::disown(&mut self.connection, after, DISOWN_CHUNK, &why).await,
                    Err(error) => Err(error),
                };
                let (last, result) = split(disowned);
                answers.push(Answer::Disowned(reply, last));
                result
            }
            Step::Other(Command::SetNode { node, reply }) => {
                answers.push(Answer::Done(reply));
                before?;
                schema::set_meta(&mut self.connection, schema::NODE_KEY, &node).await?;
                self.effects.node = Some(node);
                Ok(())
            }
            Step::Other(Command::Settle { .. }) => unreachable!("settlements are steps of their own"),
        }
    }

    async fn hold(&mut self, why: &str) -> Result<()> {
        sqlx::query("UPDATE items SET hold = 2, next_try = NULL, error = ? WHERE hold = 1 AND hold > 0")
            .bind(why)
            .execute(&mut self.connection)
            .await
            .map(|_| ())
            .map_err(failed("hold unpins"))
    }

    async fn release(&mut self) -> Result<()> {
        sqlx::query("UPDATE items SET hold = 0, next_try = ? WHERE hold = 1 AND hold > 0")
            .bind(now_ms())
            .execute(&mut self.connection)
            .await
            .map(|_| ())
            .map_err(failed("release unpins"))
    }

    async fn set_cursor(&mut self, cursor: Cursor) -> Result<()> {
        schema::set_meta(&mut self.connection, schema::CURSOR_KEY, &cursor.encode_to_vec()).await?;
        self.effects.cursor = Some(cursor);
        Ok(())
    }

    /// The rules as of what this transaction did so far.
    fn rules(&self, comparing: bool) -> Rules {
        let mut rules = rules(&self.policy, &self.shared.counts);
        rules.queue_has_room = self.has_room_for(0);
        rules.comparing = comparing;
        rules
    }

    async fn follow(&mut self, changes: Vec<Change>, cursor: Option<Cursor>, source: Source) -> Result<Vec<Touched>> {
        let cids: Vec<Vec<u8>> = changes.iter().map(|change| change.cid().to_vec()).collect();
        let found = rows::by_cids(&mut self.connection, &self.statements, &cids).await?;
        let mut existing: HashMap<Vec<u8>, Item> = found.into_iter().map(|item| (item.cid.clone(), item)).collect();
        let mut slots: Vec<Slot> = Vec::with_capacity(changes.len());
        let mut places: HashMap<Vec<u8>, usize> = HashMap::with_capacity(changes.len());
        let mut rules = self.rules(source == Source::Comparison);
        let mut queued = 0_i64;
        for (cid, change) in cids.into_iter().zip(changes) {
            rules.queue_has_room = self.has_room_for(queued);
            let place = *places.entry(cid).or_insert_with_key(|cid| {
                let before = existing.remove(cid);
                slots.push(Slot { now: before.clone(), before, changed: false });
                slots.len() - 1
            });
            let slot = &mut slots[place];
            let status_before = slot.now.as_ref().map(|item| item.status);
            slot.take(change, source, &rules);
            let status = slot.now.as_ref().map(|item| item.status);
            queued += i64::from(status == Some(TrackerStatus::PinQueued))
                - i64::from(status_before == Some(TrackerStatus::PinQueued));
        }
        let touched = self.write_slots(slots).await?;
        if let Some(cursor) = cursor {
            self.set_cursor(cursor).await?;
        }
        Ok(touched)
    }

    /// Whether one more pin may be queued after `further` ones of this batch (beh:B11.7).
    fn has_room_for(&self, further: i64) -> bool {
        let queued = self.shared.counts.of(TrackerStatus::PinQueued) as i64
            + self.effects.counts.get(&TrackerStatus::PinQueued).copied().unwrap_or(0);
        queued.saturating_add(further) < i64::try_from(self.policy.max_queued_pins).unwrap_or(i64::MAX)
    }

    async fn sweep(&mut self, after: &[u8], through: Option<&[u8]>, keep: &[Vec<u8>], index: u64) -> Result<Swept> {
        let items = rows::range(&mut self.connection, after, through, SWEEP_CHUNK).await?;
        let next = (items.len() == SWEEP_CHUNK).then(|| items.last().map(|item| item.cid.clone())).flatten();
        let rules = self.rules(true);
        let slots = items
            .into_iter()
            .filter(|item| keep.binary_search(&item.cid).is_err())
            .filter_map(|item| swept(&item, index, &rules).map(|now| (item, now)))
            .map(|(item, now)| Slot { before: Some(item), now: Some(now), changed: true })
            .collect();
        Ok(Swept { touched: self.write_slots(slots).await?, next })
    }

    async fn write_slots(&mut self, slots: Vec<Slot>) -> Result<Vec<Touched>> {
        let mut upserts = Vec::with_capacity(slots.len());
        let mut deletes = Vec::new();
        let mut touched = Vec::new();
        for slot in slots.iter().filter(|slot| slot.changed) {
            let kept = slot.now.as_ref().filter(|item| !operation::is_over(item));
            self.effects.moved(slot.before.as_ref().map(|item| item.status), kept.map(|item| item.status));
            match (kept, &slot.before) {
                (Some(item), _) => upserts.push(item),
                (None, Some(before)) => deletes.push(before.id),
                (None, None) => {}
            }
            if let (Some(_), Some(item)) = (&slot.before, &slot.now) {
                touched.push(Touched {
                    cid: item.cid.clone(),
                    revision: item.revision,
                    todo: item.todo,
                    status: item.status,
                    mode: item.mode,
                    planned: item.next_try_ms.is_some(),
                });
            }
        }
        rows::upsert(&mut self.connection, &self.statements, &upserts).await?;
        rows::delete(&mut self.connection, &self.statements, &deletes).await?;
        Ok(touched)
    }

    async fn settle(&mut self, settlements: &[Settlement]) -> Result<Vec<bool>> {
        let (deletes, updates): (Vec<&Settlement>, Vec<&Settlement>) =
            settlements.iter().partition(|settlement| operation::is_over(&settlement.item));
        let mut written: HashSet<i64> =
            rows::settle(&mut self.connection, &self.statements, &updates).await?.into_iter().collect();
        written.extend(rows::settle_away(&mut self.connection, &self.statements, &deletes).await?);
        let done = settlements.iter().map(|settlement| written.contains(&settlement.item.id)).collect();
        for Settlement { status, item, .. } in settlements.iter().filter(|of| written.contains(&of.item.id)) {
            self.effects.moved(Some(*status), (!operation::is_over(item)).then_some(item.status));
        }
        Ok(done)
    }
}

/// What is not in the pinset as of `index`. One that was on its way out already only must not look newer than that: a
/// restored pinset may be at a lower index.
fn swept(item: &Item, index: u64, rules: &Rules) -> Option<Item> {
    match item.class {
        Class::Gone if item.revision <= index => None,
        Class::Gone => Some(Item { revision: index, ..item.clone() }),
        Class::Here | Class::Leaving | Class::Remote | Class::Meta => Some(operation::removed(item, index, rules)),
    }
}

/// A row on its way through a batch of changes.
struct Slot {
    before: Option<Item>,
    now: Option<Item>,
    changed: bool,
}

impl Slot {
    fn take(&mut self, change: Change, source: Source, rules: &Rules) {
        // A row that is only there to be deleted is none.
        let current = self.now.as_ref().filter(|item| !operation::is_over(item));
        let stale = |revision| source == Source::Log && current.is_some_and(|item| item.revision > revision);
        let next = match change {
            Change::Put(order) if !stale(order.revision) => operation::put(current, order, rules),
            Change::Removed { index, .. } if !stale(index) => {
                current.map(|item| operation::removed(item, index, rules))
            }
            Change::Put(_) | Change::Removed { .. } => None,
        };
        if let Some(mut item) = next {
            item.id = self.before.as_ref().map_or(0, |before| before.id);
            self.now = Some(item);
            self.changed = true;
        }
    }
}

enum Step {
    Settle { settlements: Vec<Settlement>, replies: Vec<(Reply<Vec<bool>>, Range<usize>)> },
    Other(Command),
}

/// Settlements that follow each other become one step, as long as they are about different rows.
fn steps(group: Vec<Command>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut seen = HashSet::new();
    for command in group {
        let Command::Settle { settlements: more, reply } = command else {
            steps.push(Step::Other(command));
            continue;
        };
        let repeated = more.iter().any(|settlement| seen.contains(&settlement.item.id));
        if repeated || !matches!(steps.last(), Some(Step::Settle { .. })) {
            seen.clear();
            steps.push(Step::Settle { settlements: Vec::new(), replies: Vec::new() });
        }
        seen.extend(more.iter().map(|settlement| settlement.item.id));
        if let Some(Step::Settle { settlements, replies }) = steps.last_mut() {
            let start = settlements.len();
            settlements.extend(more);
            replies.push((reply, start..settlements.len()));
        }
    }
    steps
}

fn split<T: Default>(result: Result<T>) -> (T, Result<()>) {
    match result {
        Ok(value) => (value, Ok(())),
        Err(error) => (T::default(), Err(error)),
    }
}

impl Change {
    fn cid(&self) -> &[u8] {
        match self {
            Change::Put(order) => &order.cid,
            Change::Removed { cid, .. } => cid,
        }
    }
}
