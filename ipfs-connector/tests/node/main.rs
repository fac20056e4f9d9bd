//! What an IPFS node must do, whichever it is: one set of cases (`cases`), run against the embedded node, and against
//! real Kubo daemons where `ipfs` is on the PATH. Beside them, what only one of the two has.

mod cases;
mod crash;
mod dag;
mod embedded;
mod exchanges;
mod fake_kubo;
mod kubo;
mod kubo_sim;
