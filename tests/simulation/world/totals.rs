//! What happened in some histories, so that those in which nothing does are noticed.

/// Fields that are added up one by one, and the least that so many histories must have seen of each, as a share.
macro_rules! totals {
    ($($(#[$doc:meta])* $field:ident: $per_hundred:literal,)*) => {
        #[derive(Debug, Default)]
        pub struct Totals {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl Totals {
            pub fn add(&mut self, other: &Totals) {
                $(self.$field += other.$field;)*
            }

            /// Histories in which nothing happens would show nothing.
            pub fn check(&self, histories: u64) {
                $(
                    let least = histories * $per_hundred / 100;
                    assert!(self.$field >= least, "{}: fewer than {least} in {self:?}", stringify!($field));
                )*
            }
        }
    };
}

totals! {
    elections: 100,
    aways: 50,
    returns: 25,
    /// Hardly ever: a leader with a majority has half of the members with it.
    stops: 0,
    /// Seconds with a member whose IPFS node has been down for too long.
    ipfs_down: 10,
    moves: 50,
    settles: 25,
    taken_back: 2,
    /// Commands that arrived late, and those that arrived once more.
    late: 10,
    repeated: 10,
    pinned: 50,
    repinned: 50,
    updated: 10,
    unpinned: 25,
    refused: 5,
    drains: 25,
    undrains: 5,
    removed: 10,
    forced: 1,
    rebalanced: 10,
    /// Runs of it that ended with even shares, and without.
    even: 10,
    uneven: 1,
}
