//! The file of a state that is being built: rows only, without the protection that a state in use has.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use pinfold_proto::types;
use sqlx::{Connection, Row};

use super::Meta;
use super::files::FIRST;
use super::rows::{self, Held, Loaded, Put, Rows, Statements};
use crate::pinset::View;
use crate::store::checkpoints::Checkpoints;
use crate::store::error::{Error, Result};
use crate::store::record::{LogId, Membership};
use crate::store::sqlite;

const DOING: &str = "build a state";

pub struct Fill {
    pub rows: Rows,
}

impl Fill {
    pub async fn create(folder: &Path) -> Result<Fill> {
        let path = folder.join(FIRST);
        let mut connection = sqlite::open_builder(&path).await?;
        sqlite::prepare(&mut connection, &path, rows::VERSION, rows::SCHEMA).await?;
        // There is no write-ahead log.
        let rows = Rows::open(connection, Arc::new(Statements::new()), Checkpoints::at(u64::MAX)).await?;
        let mut fill = Fill { rows };
        fill.execute("BEGIN").await?;
        Ok(fill)
    }

    async fn execute(&mut self, sql: &'static str) -> Result<()> {
        sqlx::query(sql).execute(&mut self.rows.connection).await.map_err(Error::sqlite(DOING))?;
        Ok(())
    }

    /// `loaded` are the rows that are there already.
    pub async fn put(
        &mut self,
        pins: BTreeMap<Vec<u8>, Arc<types::Pin>>,
        mut loaded: HashMap<Vec<u8>, Loaded>,
    ) -> Result<()> {
        let (mut inserts, mut updates) = (Vec::new(), Vec::new());
        let mut freed: Vec<(Held, i64)> = Vec::new();
        let mut taken: Vec<(Held, i64)> = Vec::new();
        for (cid, pin) in pins {
            let before = loaded.remove(&cid);
            if let Some(row) = &before {
                self.rows.forget_sum(row);
            }
            let (id, puts) = match &before {
                Some(row) => (row.id, &mut updates),
                None => (self.rows.next_pin(), &mut inserts),
            };
            freed.extend(before.into_iter().flat_map(|row| row.held).map(|row| (row, id)));
            taken.extend(self.rows.held(&pin).await?.into_iter().map(|row| (row, id)));
            puts.push(Put::new(id, pin));
        }
        freed.sort_unstable();
        taken.sort_unstable();
        self.rows.delete_allocations(&freed).await?;
        self.rows.update_pins(&updates).await?;
        self.rows.insert_pins(&inserts).await?;
        self.rows.put_allocations(&taken).await?;
        self.rows.flush().await
    }

    pub async fn commit_and_go_on(&mut self) -> Result<()> {
        self.execute("COMMIT").await?;
        self.execute("BEGIN").await
    }

    /// Writes what is no pin and closes the file. Returns how many pins there are.
    pub async fn finish(mut self, applied: LogId, mut view: View, membership: &Membership) -> Result<u64> {
        self.execute("COMMIT").await?;
        let row = sqlx::query("SELECT count(*) FROM pins").fetch_one(&mut self.rows.connection).await;
        view.pin_count = row.map_err(Error::sqlite(DOING))?.get::<i64, _>(0) as u64;
        self.rows.begin().await?;
        for row in view.peers.rows.values() {
            self.rows.put_peer(row).await?;
        }
        for (name, value) in &view.settings {
            self.rows.put_setting(name, Some(value)).await?;
        }
        let meta = Meta { applied: Some(applied), unlogged: 0, membership: membership.clone() };
        self.rows.commit(&meta, &view).await?;
        self.rows.connection.close().await.map_err(Error::sqlite(DOING))?;
        Ok(view.pin_count)
    }
}
