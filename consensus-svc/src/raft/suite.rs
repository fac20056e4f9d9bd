//! The consensus library's own test suite, on our stores.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_store::LogStore;
use super::machine::{Machine, Transfers};
use super::types::Types;
use crate::store::Stores;

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Types>> {
        let folder = TempDir::new().unwrap();
        let stores = Stores::open(folder.path()).await.unwrap();
        let machine = Machine::new(stores.state, stores.log.clone(), Transfers::default());
        Ok((folder, LogStore(stores.log), machine))
    }
}

/// Goal: what the library expects of its storage holds for ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_stores_pass_the_suite() {
    Suite::test_all(Builder).await.unwrap();
}
