//! Which pins may expire now. PURE: the clocks come in, commands come out.
//!
//! A pin expires when the leader's clock and that of at least one more voter are past its time (protocols.md 9); a
//! cluster of one has its own clock only. A leader whose clock is far from the voters' expires nothing.

use pinfold_proto::storage;

/// Farther than this from the voters' median, the leader does not trust its clock.
pub const MAX_SKEW_SECONDS: i64 = 300;
/// Proposals of one round; the rest is found by the next one.
pub const MAX_PER_ROUND: usize = 256;

/// What is on time in the index: an entry that wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub cid: Vec<u8>,
    pub revision: u64,
    pub expire_at_seconds: i64,
}

/// The clocks of the voters, in Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clocks {
    pub leader: i64,
    /// Those of the other voters that are known.
    pub others: Vec<i64>,
    /// How many other voters there are.
    pub other_voters: usize,
}

/// Why nothing may expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// No other voter's clock is known.
    NoSecondClock,
    /// The leader's clock is off by so many seconds.
    Skewed(i64),
}

impl Clocks {
    /// The time up to which pins may expire.
    pub fn agreed(&self) -> Result<i64, Held> {
        if self.other_voters == 0 {
            return Ok(self.leader);
        }
        let latest = *self.others.iter().max().ok_or(Held::NoSecondClock)?;
        let mut all = self.others.clone();
        all.push(self.leader);
        all.sort_unstable();
        // The lower one of two in the middle: with two voters it is the slower clock, which is also compared below.
        let median = all[(all.len() - 1) / 2];
        let skew = self.leader - median;
        if skew.abs() > MAX_SKEW_SECONDS {
            return Err(Held::Skewed(skew));
        }
        Ok(self.leader.min(latest))
    }
}

/// The commands of one round.
pub fn plan(due: &[Due], clocks: &Clocks) -> Result<Vec<storage::Expire>, Held> {
    let agreed = clocks.agreed()?;
    Ok(due
        .iter()
        .filter(|due| due.expire_at_seconds != 0 && due.expire_at_seconds < agreed)
        .take(MAX_PER_ROUND)
        .map(|due| storage::Expire { cid: due.cid.clone(), expected_revision: due.revision })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(leader: i64, others: &[i64], other_voters: usize) -> Clocks {
        Clocks { leader, others: others.to_vec(), other_voters }
    }

    fn due(cid: u8, at: i64) -> Due {
        Due { cid: vec![cid], revision: 5, expire_at_seconds: at }
    }

    /// Goal: one clock that runs ahead expires nothing, whoever has it.
    #[test]
    fn two_clocks_must_agree() {
        let list = [due(1, 1000), due(2, 1010), due(3, 0)];
        let cids = |clocks| -> Vec<u8> { plan(&list, &clocks).unwrap().iter().map(|expire| expire.cid[0]).collect() };
        assert_eq!(cids(clocks(1005, &[], 0)), vec![1]);
        assert_eq!(cids(clocks(1015, &[1005, 900], 2)), vec![1]);
        assert_eq!(cids(clocks(1005, &[1015, 1020], 2)), vec![1]);
        assert_eq!(plan(&list, &clocks(1015, &[], 2)), Err(Held::NoSecondClock));
    }

    /// Goal: a leader whose clock jumped holds expiry, either way.
    #[test]
    fn a_skewed_leader_expires_nothing() {
        assert_eq!(clocks(10_000, &[1000, 1001], 2).agreed(), Err(Held::Skewed(8999)));
        assert_eq!(clocks(10_000, &[1000], 1).agreed(), Err(Held::Skewed(9000)));
        assert_eq!(clocks(100, &[1000, 1001], 2).agreed(), Err(Held::Skewed(-900)));
    }

    /// Goal: a round is bounded.
    #[test]
    fn rounds_are_bounded() {
        let many: Vec<Due> = (0..1000).map(|_| due(1, 10)).collect();
        assert_eq!(plan(&many, &clocks(20, &[], 0)).unwrap().len(), MAX_PER_ROUND);
    }
}
