//! Reads a whole state and compares it with its sums: damage that no query would notice, because a row is not found any
//! more, is found here. In constant memory, in one read transaction.

use std::collections::HashMap;

use pinfold_proto::types;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::rows::{expire_at, pin_in};
use crate::store::error::{Error, Result};
use crate::store::sqlite::{self, field};
use crate::store::sum;

const VERIFYING: &str = "verify the state";
/// Rows read at once.
const ROWS: i64 = 2000;

/// Compares everything.
pub async fn verify(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("BEGIN").execute(&mut *connection).await.map_err(Error::sqlite(VERIFYING))?;
    let verified = verify_in_transaction(connection).await;
    sqlx::query("COMMIT").execute(connection).await.map_err(Error::sqlite(VERIFYING))?;
    verified
}

/// As [`verify`], for a caller that has the transaction, or is the only one at the file.
pub async fn verify_in_transaction(connection: &mut SqliteConnection) -> Result<()> {
    sqlite::check_structure(connection).await?;
    let slots = slots(connection).await?;
    let found = pins(connection, &slots).await?;
    let row = sqlx::query("SELECT pin_count, pins_sum FROM status").fetch_one(&mut *connection).await;
    let row = row.map_err(Error::sqlite(VERIFYING))?;
    let (count, sum): (i64, i64) = (field(&row, 0)?, field(&row, 1)?);
    if (found.count, found.sum) != (count, sum) {
        return Err(Error::damaged(format!(
            "{} pins are there and {count} were written, or their checksum differs",
            found.count
        )));
    }
    if allocations(connection).await? != found.allocations {
        return Err(Error::damaged("the index of the allocations is not that of the pins"));
    }
    Ok(())
}

/// The holders' numbers by their peer IDs.
async fn slots(connection: &mut SqliteConnection) -> Result<HashMap<Vec<u8>, i64>> {
    let rows = sqlx::query("SELECT slot, peer FROM holders").fetch_all(connection).await;
    rows.map_err(Error::sqlite(VERIFYING))?.iter().map(|row| Ok((field(row, 1)?, field(row, 0)?))).collect()
}

#[derive(Default)]
struct Found {
    count: i64,
    sum: i64,
    allocations: i64,
}

/// By the index of the CIDs, so that it is compared with the rows.
async fn pins(connection: &mut SqliteConnection, slots: &HashMap<Vec<u8>, i64>) -> Result<Found> {
    let mut found = Found::default();
    let mut after: Vec<u8> = Vec::new();
    loop {
        let sql = "SELECT id, cid, kind, expire_at, v, sum FROM pins WHERE cid > ? ORDER BY cid LIMIT ?";
        let rows = sqlx::query(sql).bind(after.as_slice()).bind(ROWS).fetch_all(&mut *connection).await;
        let rows = rows.map_err(Error::sqlite(VERIFYING))?;
        for row in &rows {
            let pin = pin_in(row)?;
            let is_as_indexed = field::<&[u8]>(row, 1)? == pin.cid
                && field::<i32>(row, 2)? == pin.r#type
                && field::<Option<i64>>(row, 3)? == expire_at(&pin);
            if !is_as_indexed {
                return Err(Error::damaged("a pin is not the one that its row says"));
            }
            found.count += 1;
            found.sum = found.sum.wrapping_add(field::<Option<i64>>(row, 5)?.unwrap_or(0));
            found.allocations = found.allocations.wrapping_add(held(&pin, field(row, 0)?, slots)?);
        }
        match rows.last() {
            Some(last) => after = last.get(1),
            None => return Ok(found),
        }
    }
}

fn held(pin: &types::Pin, id: i64, slots: &HashMap<Vec<u8>, i64>) -> Result<i64> {
    let mut sum: i64 = 0;
    let allocated = pin.allocations.iter().map(|peer| (0, peer));
    for (leaving, peer) in allocated.chain(pin.leaving.iter().map(|peer| (1, peer))) {
        let slot = slots.get(peer).ok_or_else(|| Error::damaged("a holder of a pin has no number"))?;
        sum = sum.wrapping_add(mark(leaving, *slot, id));
    }
    Ok(sum)
}

async fn allocations(connection: &mut SqliteConnection) -> Result<i64> {
    let mut sum: i64 = 0;
    let mut after = (-1_i64, 0_i64, 0_i64);
    loop {
        let sql = "SELECT leaving, holder, pin FROM allocations WHERE (leaving, holder, pin) > (?, ?, ?) \
                   ORDER BY leaving, holder, pin LIMIT ?";
        let query = sqlx::query(sql).bind(after.0).bind(after.1).bind(after.2).bind(ROWS);
        let rows = query.fetch_all(&mut *connection).await.map_err(Error::sqlite(VERIFYING))?;
        for row in &rows {
            after = (field(row, 0)?, field(row, 1)?, field(row, 2)?);
            sum = sum.wrapping_add(mark(after.0, after.1, after.2));
        }
        if rows.is_empty() {
            return Ok(sum);
        }
    }
}

/// One row of the allocations, so that sums of them can be compared.
fn mark(leaving: i64, holder: i64, pin: i64) -> i64 {
    sum::of(&[&leaving.to_be_bytes(), &holder.to_be_bytes(), &pin.to_be_bytes()])
}
