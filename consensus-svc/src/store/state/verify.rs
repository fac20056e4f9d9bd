//! Reads a whole state and compares it with its sums: damage that no query would notice, because a row is not found any
//! more, is found here. In constant memory, in one read transaction.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};

use pinfold_proto::types;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::columns::{Numbers, piece, torn};
use super::rows::{decode_pin, expire_at};
use crate::store::error::{Error, Result};
use crate::store::sqlite::{self, field};
use crate::store::sum;

const VERIFYING: &str = "verify the state";
/// Rows read at once.
const ROWS: i64 = 2000;
/// Where every row is looked for in every index; of the large ones, what is in their indexes is compared by sums.
const SMALL_TABLES: [&str; 5] = [
    "PRAGMA integrity_check(keys)",
    "PRAGMA integrity_check(holders)",
    "PRAGMA integrity_check(peers)",
    "PRAGMA integrity_check(settings)",
    "PRAGMA integrity_check(status)",
];
/// As [`super::read`] reads pins: many rows as one, what is of one column side by side.
const PINS: &str = "
    SELECT max(id), group_concat(id), CAST(group_concat(cid, '') AS BLOB), group_concat(length(cid)),
        group_concat(kind), group_concat(coalesce(expire_at, '')), CAST(group_concat(v, '') AS BLOB),
        group_concat(length(v)), group_concat(coalesce(sum, ''))
    FROM (SELECT id, cid, kind, expire_at, v, sum FROM pins NOT INDEXED WHERE id > ? ORDER BY id LIMIT +?)";
/// Nothing of it is in the table, so only the index is read.
const CIDS: &str = "
    SELECT CAST(group_concat(cid, '') AS BLOB), group_concat(length(cid)), group_concat(id)
    FROM (SELECT cid, id FROM pins INDEXED BY sqlite_autoindex_pins_1 WHERE cid > ? ORDER BY cid LIMIT +?)";
/// Stands in for the first number of a triple.
const EXPIRY: i64 = 2;
const EXPIRIES: &str = "
    SELECT group_concat(2), group_concat(expire_at), group_concat(id)
    FROM (SELECT expire_at, id FROM pins INDEXED BY pins_by_expiry
        WHERE expire_at IS NOT NULL AND (expire_at, id) > (?2, ?3) ORDER BY expire_at, id LIMIT +?4)";
const ALLOCATIONS: &str = "
    SELECT group_concat(leaving), group_concat(holder), group_concat(pin)
    FROM (SELECT leaving, holder, pin FROM allocations WHERE (leaving, holder, pin) > (?, ?, ?)
        ORDER BY leaving, holder, pin LIMIT +?)";

/// Compares everything.
pub async fn verify(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("BEGIN").execute(&mut *connection).await.map_err(Error::sqlite(VERIFYING))?;
    let verified = verify_in_transaction(connection).await;
    sqlx::query("COMMIT").execute(connection).await.map_err(Error::sqlite(VERIFYING))?;
    verified
}

/// As [`verify`], for a caller that has the transaction, or is the only one at the file.
pub async fn verify_in_transaction(connection: &mut SqliteConnection) -> Result<()> {
    sqlite::check_pages(connection).await?;
    for pragma in SMALL_TABLES {
        sqlite::check_table(connection, pragma).await?;
    }
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
    for (index, is, should) in [
        ("CIDs", cids(connection).await?, found.cids),
        ("expiry", triples(connection, EXPIRIES, EXPIRY).await?, found.expiries),
        ("allocations", triples(connection, ALLOCATIONS, 0).await?, found.allocations),
    ] {
        if is != should {
            return Err(Error::damaged(format!("the index of the {index} is not that of the pins")));
        }
    }
    Ok(())
}

/// The holders' numbers by their peer IDs.
async fn slots(connection: &mut SqliteConnection) -> Result<HashMap<Vec<u8>, i64>> {
    let rows = sqlx::query("SELECT slot, peer FROM holders").fetch_all(connection).await;
    rows.map_err(Error::sqlite(VERIFYING))?.iter().map(|row| Ok((field(row, 1)?, field(row, 0)?))).collect()
}

/// Sums over all pins, wrapping, to be compared with those of what lies beside them.
#[derive(Default)]
struct Found {
    count: i64,
    sum: i64,
    cids: i64,
    expiries: i64,
    allocations: i64,
}

/// In the order in which they lie in the file. The next rows are read while these are looked at.
async fn pins(connection: &mut SqliteConnection, slots: &HashMap<Vec<u8>, i64>) -> Result<Found> {
    let mut found = Found::default();
    let mut row = pins_after(connection, i64::MIN).await?;
    while let Some(last) = field::<Option<i64>>(&row, 0)? {
        let (next, looked) = tokio::join!(pins_after(connection, last), async { found.look_at(&row, slots) });
        looked?;
        row = next?;
    }
    Ok(found)
}

async fn pins_after(connection: &mut SqliteConnection, after: i64) -> Result<SqliteRow> {
    let row = sqlx::query(PINS).bind(after).bind(ROWS).fetch_one(connection).await;
    row.map_err(Error::sqlite(VERIFYING))
}

impl Found {
    fn look_at(&mut self, row: &SqliteRow, slots: &HashMap<Vec<u8>, i64>) -> Result<()> {
        let mut ids = Numbers::of(row, 1)?;
        let bytes = |column: usize| Ok::<_, Error>(field::<Option<&[u8]>>(row, column)?.unwrap_or_default());
        let (mut cids, mut cid_sizes) = (bytes(2)?, Numbers::of(row, 3)?);
        let (mut kinds, mut expiries) = (Numbers::of(row, 4)?, Numbers::of(row, 5)?);
        let (mut values, mut value_sizes) = (bytes(6)?, Numbers::of(row, 7)?);
        let mut sums = Numbers::of(row, 8)?;
        while let Some(id) = ids.next()? {
            let (cid, value) = (piece(&mut cids, cid_sizes.must()?)?, piece(&mut values, value_sizes.must()?)?);
            let (kind, expiry, sum) = (kinds.must()?, expiries.may()?, sums.may()?);
            sum::check(&[value], sum, "a pin")?;
            let pin = decode_pin(value)?;
            if cid != pin.cid || kind != i64::from(pin.r#type) || expiry != expire_at(&pin) {
                return Err(Error::damaged("a pin is not the one that its row says"));
            }
            self.count += 1;
            self.sum = self.sum.wrapping_add(sum.unwrap_or(0));
            self.cids = self.cids.wrapping_add(mark_of_cid(cid, id));
            if let Some(expiry) = expiry {
                self.expiries = self.expiries.wrapping_add(mark(EXPIRY, expiry, id));
            }
            self.allocations = self.allocations.wrapping_add(held(&pin, id, slots)?);
        }
        if !cids.is_empty() || !values.is_empty() { Err(torn()) } else { Ok(()) }
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

/// The index of the CIDs, which is in their order.
async fn cids(connection: &mut SqliteConnection) -> Result<i64> {
    let mut sum: i64 = 0;
    let mut after: Vec<u8> = Vec::new();
    loop {
        let query = sqlx::query(CIDS).bind(after.as_slice()).bind(ROWS);
        let row = query.fetch_one(&mut *connection).await.map_err(Error::sqlite(VERIFYING))?;
        let mut bytes = field::<Option<&[u8]>>(&row, 0)?.unwrap_or_default();
        let (mut sizes, mut ids) = (Numbers::of(&row, 1)?, Numbers::of(&row, 2)?);
        let mut before: &[u8] = &after;
        while let Some(size) = sizes.next()? {
            let cid = piece(&mut bytes, size)?;
            if cid <= before {
                return Err(Error::damaged("the index of the CIDs is not in their order"));
            }
            sum = sum.wrapping_add(mark_of_cid(cid, ids.must()?));
            before = cid;
        }
        if before == after.as_slice() {
            return Ok(sum);
        }
        after = before.to_vec();
    }
}

/// What has three numbers for each row, or two and `first`, each of which is above the one before it.
async fn triples(connection: &mut SqliteConnection, sql: &'static str, first: i64) -> Result<i64> {
    let mut sum: i64 = 0;
    let mut after = (first, i64::MIN, i64::MIN);
    loop {
        let query = sqlx::query(sql).bind(after.0).bind(after.1).bind(after.2).bind(ROWS);
        let row = query.fetch_one(&mut *connection).await.map_err(Error::sqlite(VERIFYING))?;
        let mut columns = [Numbers::of(&row, 0)?, Numbers::of(&row, 1)?, Numbers::of(&row, 2)?];
        let before = after;
        let [firsts, seconds, thirds] = &mut columns;
        while let Some(number) = firsts.next()? {
            // The next rows begin after the highest of these.
            let found = (number, seconds.must()?, thirds.must()?);
            after = after.max(found);
            sum = sum.wrapping_add(mark(found.0, found.1, found.2));
        }
        if after == before {
            return Ok(sum);
        }
    }
}

/// One row of the allocations, so that sums of them can be compared. Both are taken here and now, so a quick hash does.
fn mark(leaving: i64, holder: i64, pin: i64) -> i64 {
    let mut hasher = DefaultHasher::new();
    for number in [leaving, holder, pin] {
        hasher.write_i64(number);
    }
    hasher.finish().cast_signed()
}

/// The same of an entry of the index of the CIDs.
fn mark_of_cid(cid: &[u8], id: i64) -> i64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(cid);
    hasher.write_i64(id);
    hasher.finish().cast_signed()
}
