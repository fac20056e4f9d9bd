//! Which committed batches go into one transaction of the state.
//!
//! A pin has a page of the index of CIDs written nearly for itself alone, and the fewer the pins of a transaction are, the
//! more so. Whoever leads applies at once, because proposers wait for it. At the others nobody waits for a certain batch:
//! pins that come in a stream are gathered there for [`GATHER`]. Local reads and those who follow the pinset are behind by
//! that much, while more than [`STREAM_BYTES_PER_SECOND`] comes in; whoever needs an index ([`super::State::wait_applied`])
//! or waits for an outcome is not kept waiting.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::writer::{Batch, Op};

/// From the begin of one transaction to that of the next.
const GATHER: Duration = Duration::from_millis(200);
/// Bytes of commands that wait no longer: what they become in memory is many times as large.
const GATHER_BYTES: usize = 2 << 20;
/// Bytes of commands in one transaction, beyond which the next batch waits for the next.
const MAX_TRANSACTION_BYTES: usize = 4 << 20;
/// About two thousand pins, each an entry of its own, a second. Somebody who pins one after the other, and looks each time
/// whether it is pinned everywhere, is far below that, and waits for nothing.
const STREAM_BYTES_PER_SECOND: f64 = (512 << 10) as f64;

/// Collects the batches of one transaction after the other.
pub struct Gathering {
    /// How many wait for an index.
    waiting: watch::Receiver<usize>,
    begun: Option<Instant>,
    is_stream: bool,
}

/// Of what goes into one transaction.
#[derive(Clone, Copy)]
struct Together {
    bytes: usize,
    may_wait: bool,
}

impl Together {
    fn with(self, batch: &Batch) -> Together {
        Together { bytes: self.bytes + batch.size_bytes(), may_wait: self.may_wait && batch.may_wait() }
    }
}

impl Gathering {
    pub fn new(waiting: watch::Receiver<usize>) -> Gathering {
        Gathering { waiting, begun: None, is_stream: false }
    }

    /// The batches that go with `first`, and what waits behind them.
    pub async fn collect(&mut self, first: Batch, ops: &mut mpsc::Receiver<Op>) -> (Vec<Batch>, Option<Op>) {
        let mut together = Together { bytes: 0, may_wait: true }.with(&first);
        let mut batches = vec![first];
        let other = loop {
            match self.next(together, ops).await {
                Some(Op::Apply(batch)) => {
                    together = together.with(&batch);
                    batches.push(batch);
                }
                other => break other,
            }
        };
        self.begin(together.bytes);
        (batches, other)
    }

    /// `None`: the transaction shall begin.
    async fn next(&mut self, together: Together, ops: &mut mpsc::Receiver<Op>) -> Option<Op> {
        if together.bytes >= MAX_TRANSACTION_BYTES {
            return None;
        }
        if let Ok(op) = ops.try_recv() {
            return Some(op);
        }
        let until = self.begun.filter(|_| self.is_stream)? + GATHER;
        if !together.may_wait || together.bytes >= GATHER_BYTES {
            return None;
        }
        tokio::select! {
            op = ops.recv() => op,
            _ = self.waiting.wait_for(|waiting| *waiting > 0) => None,
            () = sleep_until(until) => None,
        }
    }

    /// A transaction of so many bytes begins.
    fn begin(&mut self, bytes: usize) {
        let now = Instant::now();
        let since = self.begun.replace(now).map(|before| now - before);
        self.is_stream = since.is_some_and(|since| bytes as f64 >= STREAM_BYTES_PER_SECOND * since.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pinfold_proto::storage::{self, command::Command as Kind};
    use pinfold_proto::types;
    use tokio::sync::{Semaphore, oneshot};

    use super::*;
    use crate::store::record::{LogId, Payload, Proposal, Record};

    const PACE: Duration = Duration::from_millis(5);

    struct Bench {
        gathering: Gathering,
        waiting: watch::Sender<usize>,
        queue: mpsc::Sender<Op>,
        ops: mpsc::Receiver<Op>,
    }

    fn of(payload: Payload) -> Batch {
        let record = Record { id: LogId::default(), payload };
        let room = Arc::new(Semaphore::new(MAX_TRANSACTION_BYTES));
        let room = room.try_acquire_many_owned(record.size_bytes() as u32).unwrap();
        Batch { records: vec![record], unlogged: 0, done: None, room }
    }

    /// About as many bytes.
    fn pins(bytes: usize) -> Batch {
        let pin = types::Pin { cid: vec![7; bytes], ..Default::default() };
        let put = storage::Put { pin: Some(pin), ..Default::default() };
        let command = Some(Kind::PutMany(storage::PutMany { puts: vec![put] }));
        let command = storage::Command { command, ..Default::default() };
        of(Payload::Command(Arc::new(Proposal::new(command))))
    }

    impl Bench {
        fn new() -> Bench {
            let waiting = watch::Sender::new(0);
            let (queue, ops) = mpsc::channel(1024);
            Bench { gathering: Gathering::new(waiting.subscribe()), waiting, queue, ops }
        }

        /// How many batches began with the one that is next, when, and whether something else waits behind them.
        async fn collect(&mut self) -> (usize, Duration, bool) {
            let Some(Op::Apply(first)) = self.ops.recv().await else { panic!("no batch") };
            let started = Instant::now();
            let (batches, other) = self.gathering.collect(first, &mut self.ops).await;
            (batches.len(), started.elapsed(), other.is_some())
        }

        async fn send(&self, batch: Batch) {
            self.queue.send(Op::Apply(batch)).await.unwrap();
        }

        /// After two batches, one soon after the other.
        async fn in_a_stream() -> Bench {
            let mut bench = Bench::new();
            for _ in 0..2 {
                bench.send(pins(100_000)).await;
                assert_eq!(bench.collect().await, (1, Duration::ZERO, false));
                tokio::time::sleep(PACE).await;
            }
            bench
        }

        /// Sends one batch every few milliseconds, in the background.
        fn stream(&self, bytes: usize) {
            let queue = self.queue.clone();
            tokio::spawn(async move {
                while queue.send(Op::Apply(pins(bytes))).await.is_ok() {
                    tokio::time::sleep(PACE).await;
                }
            });
        }
    }

    /// Goal: a stream of pins that nobody waits for is applied in few, large transactions, as long as it goes on.
    #[tokio::test(start_paused = true)]
    async fn a_stream_is_gathered() {
        let mut bench = Bench::in_a_stream().await;
        bench.stream(20_000);
        for _ in 0..3 {
            let (batches, took, _) = bench.collect().await;
            assert!((30..=40).contains(&batches), "{batches} batches");
            assert!(took > GATHER / 2 && took <= GATHER, "{took:?}");
        }
        // The first one after a pause goes at once.
        (bench.queue, bench.ops) = mpsc::channel(1);
        tokio::time::sleep(2 * GATHER).await;
        bench.send(pins(100_000)).await;
        assert_eq!(bench.collect().await, (1, Duration::ZERO, false));
    }

    /// Goal: single pins, one after the other, wait for nothing.
    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_applied_at_once() {
        let mut bench = Bench::new();
        bench.stream(200);
        for _ in 0..100 {
            assert_eq!(bench.collect().await, (1, Duration::ZERO, false));
        }
    }

    /// Goal: nothing that somebody waits for is kept back, nor what changes the peerset, nor too much.
    #[tokio::test(start_paused = true)]
    async fn nobody_is_kept_waiting() {
        let mut bench = Bench::in_a_stream().await;
        bench.send(Batch { done: Some(Box::new(|_| ())), ..pins(10) }).await;
        assert_eq!(bench.collect().await, (1, Duration::ZERO, false));

        let mut bench = Bench::in_a_stream().await;
        bench.send(of(Payload::Blank)).await;
        assert_eq!(bench.collect().await, (1, Duration::ZERO, false));

        let mut bench = Bench::in_a_stream().await;
        bench.send(pins(10)).await;
        let (done, _checkpointed) = oneshot::channel();
        bench.queue.send(Op::Checkpoint { done }).await.unwrap();
        assert_eq!(bench.collect().await, (1, Duration::ZERO, true));

        let mut bench = Bench::in_a_stream().await;
        bench.send(pins(GATHER_BYTES)).await;
        assert_eq!(bench.collect().await, (1, Duration::ZERO, false));

        let mut bench = Bench::in_a_stream().await;
        bench.send(pins(10)).await;
        bench.waiting.send_modify(|waiting| *waiting += 1);
        assert_eq!(bench.collect().await, (1, Duration::ZERO, false));

        // Whoever comes later, too.
        let mut bench = Bench::in_a_stream().await;
        bench.send(pins(10)).await;
        let waiting = bench.waiting.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PACE).await;
            waiting.send_modify(|waiting| *waiting += 1);
        });
        assert_eq!(bench.collect().await, (1, PACE, false));
    }
}
