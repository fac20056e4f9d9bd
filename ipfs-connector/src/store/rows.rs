//! Items as rows and back, and the statements that read and write many at once.

use std::sync::Arc;

use pinfold_common::pin::PinMode;
use pinfold_common::status::TrackerStatus;
use pinfold_proto::types::Reason;
use sqlx::query::QueryScalar;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::{Lane, Settlement, failed};
use crate::error::{ConnectorError, Result};
use crate::lists::{LENGTHS, pieces};
use crate::tracker::operation::{Class, Fetched, Hold, Item, Ownership, Todo};

/// What the index of rows in error covers, and `cluster_error`, which no row has.
const ERROR_STATUSES: u32 = TrackerStatus::ClusterError.bit()
    | TrackerStatus::PinError.bit()
    | TrackerStatus::UnpinError.bit()
    | TrackerStatus::UnexpectedlyUnpinned.bit();

/// A whole item with the rest of the statement; the columns are in the order that `item` reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, cid, revision, class, status, todo, ownership, hold, direct, lane, next_try, attempts, reason, ",
            "error, changed, pin, blocks, bytes, last_block FROM items ",
            $rest
        )
    };
}

/// What a row has beside its key.
const WRITTEN: [&str; 18] = [
    "cid",
    "revision",
    "class",
    "status",
    "todo",
    "ownership",
    "hold",
    "direct",
    "lane",
    "next_try",
    "attempts",
    "reason",
    "error",
    "changed",
    "pin",
    "blocks",
    "bytes",
    "last_block",
];
/// Where a row must stand for the end of an attempt to count.
const STANDING: [&str; 4] = ["id", "revision", "status", "todo"];
/// What the end of an attempt may change.
const SETTLED: [&str; 13] = [
    "status",
    "todo",
    "ownership",
    "hold",
    "lane",
    "next_try",
    "attempts",
    "reason",
    "error",
    "changed",
    "blocks",
    "bytes",
    "last_block",
];

/// What a claim changes.
const CLAIMED: [&str; 1] = ["ownership"];

/// Text of the statements with lists, by length.
pub(super) struct Statements {
    select: [Arc<str>; LENGTHS.len()],
    upsert: [Arc<str>; LENGTHS.len()],
    settle: [Arc<str>; LENGTHS.len()],
    claim: [Arc<str>; LENGTHS.len()],
    delete: [Arc<str>; LENGTHS.len()],
    delete_any: [Arc<str>; LENGTHS.len()],
}

impl Statements {
    pub fn new() -> Statements {
        let marks = |count: usize| vec!["?"; count].join(", ");
        let tuples = |rows: usize, columns: usize| vec![format!("({})", marks(columns)); rows].join(", ");
        let updates =
            WRITTEN[1..].iter().map(|name| format!("{name} = excluded.{name}")).collect::<Vec<_>>().join(", ");
        let standing = "items.revision = v.revision AND items.status = v.before AND items.todo = v.owed";
        let settle = |columns: &[&str]| {
            let changes = columns.iter().map(|name| format!("{name} = v.{name}")).collect::<Vec<_>>().join(", ");
            let names = columns.join(", ");
            LENGTHS.map(|n| {
                let values = tuples(n, STANDING.len() + columns.len());
                format!(
                    "WITH v (id, revision, before, owed, {names}) AS (VALUES {values}) \
                     UPDATE items SET {changes} FROM v WHERE items.id = v.id AND {standing} RETURNING items.id"
                )
                .into()
            })
        };
        Statements {
            select: LENGTHS.map(|n| format!(select!("WHERE cid IN ({})"), marks(n)).into()),
            upsert: LENGTHS.map(|n| {
                let columns = WRITTEN.join(", ");
                let values = tuples(n, WRITTEN.len());
                format!("INSERT INTO items ({columns}) VALUES {values} ON CONFLICT (cid) DO UPDATE SET {updates}")
                    .into()
            }),
            settle: settle(&SETTLED),
            claim: settle(&CLAIMED),
            delete: LENGTHS.map(|n| {
                let values = tuples(n, STANDING.len());
                format!(
                    "WITH v (id, revision, before, owed) AS (VALUES {values}) \
                     DELETE FROM items WHERE id IN (SELECT items.id FROM v CROSS JOIN items \
                     WHERE items.id = v.id AND {standing}) RETURNING id"
                )
                .into()
            }),
            delete_any: LENGTHS.map(|n| format!("DELETE FROM items WHERE id IN ({})", marks(n)).into()),
        }
    }
}

fn sql(text: &Arc<str>) -> AssertSqlSafe<Arc<str>> {
    // Made of constants above; values are always bound.
    AssertSqlSafe(text.clone())
}

pub(super) async fn by_cids(
    connection: &mut SqliteConnection,
    statements: &Statements,
    cids: &[Vec<u8>],
) -> Result<Vec<Item>> {
    let mut items = Vec::with_capacity(cids.len());
    for (index, piece) in pieces(cids) {
        let mut query = sqlx::query(sql(&statements.select[index]));
        for cid in piece {
            query = query.bind(cid.as_slice());
        }
        let rows = query.fetch_all(&mut *connection).await.map_err(failed("read rows"))?;
        for row in &rows {
            items.push(item(row)?);
        }
    }
    Ok(items)
}

pub(super) async fn page(
    connection: &mut SqliteConnection,
    after: &[u8],
    statuses: u32,
    limit: usize,
) -> Result<Vec<Item>> {
    const ALL: &str = select!("WHERE cid > ? ORDER BY cid LIMIT +?");
    const SOME: &str = select!("WHERE cid > ? AND status & ? ORDER BY cid LIMIT +?");
    // What is in error is few among many, and has an index.
    const IN_ERROR: &str = select!(
        "INDEXED BY items_in_error \
         WHERE status IN (4, 8, 4096) AND cid > ? AND status & ? ORDER BY cid LIMIT +?"
    );
    let query = if statuses == 0 {
        sqlx::query(ALL).bind(after)
    } else if statuses & !ERROR_STATUSES == 0 {
        sqlx::query(IN_ERROR).bind(after).bind(i64::from(statuses))
    } else {
        sqlx::query(SOME).bind(after).bind(i64::from(statuses))
    };
    let rows = query.bind(limit as i64).fetch_all(connection).await.map_err(failed("read a page"))?;
    rows.iter().map(item).collect()
}

pub(super) async fn troubled(connection: &mut SqliteConnection, after: &[u8], limit: usize) -> Result<Vec<Item>> {
    let rows = sqlx::query(select!(
        "INDEXED BY items_in_error \
         WHERE status IN (4, 8, 4096) AND cid > ? ORDER BY cid LIMIT +?"
    ))
    .bind(after)
    .bind(limit as i64)
    .fetch_all(connection)
    .await
    .map_err(failed("read rows in error"))?;
    rows.iter().map(item).collect()
}

/// Rows of a range that a comparison sweeps.
pub(super) async fn range(
    connection: &mut SqliteConnection,
    after: &[u8],
    through: Option<&[u8]>,
    limit: usize,
) -> Result<Vec<Item>> {
    match through {
        None => page(connection, after, 0, limit).await,
        Some(through) => {
            let rows = sqlx::query(select!("WHERE cid > ? AND cid <= ? ORDER BY cid LIMIT +?"))
                .bind(after)
                .bind(through)
                .bind(limit as i64)
                .fetch_all(connection)
                .await
                .map_err(failed("read a range"))?;
            rows.iter().map(item).collect()
        }
    }
}

pub(super) async fn due(
    connection: &mut SqliteConnection,
    lane: Lane,
    now_ms: i64,
    after: (i64, i64),
    limit: usize,
) -> Result<Vec<Item>> {
    let rows = sqlx::query(select!(
        "INDEXED BY items_planned \
         WHERE lane = ? AND next_try IS NOT NULL AND next_try <= ? AND (next_try, id) > (?, ?) \
         ORDER BY next_try, id LIMIT +?"
    ))
    .bind(lane.number())
    .bind(now_ms)
    .bind(after.0)
    .bind(after.1)
    .bind(limit as i64)
    .fetch_all(connection)
    .await
    .map_err(failed("read planned work"))?;
    rows.iter().map(item).collect()
}

pub(super) async fn newest_due(
    connection: &mut SqliteConnection,
    lane: Lane,
    now_ms: i64,
    limit: usize,
) -> Result<Vec<Item>> {
    let rows = sqlx::query(select!(
        "INDEXED BY items_planned \
         WHERE lane = ? AND next_try IS NOT NULL AND next_try <= ? ORDER BY next_try DESC, id DESC LIMIT +?"
    ))
    .bind(lane.number())
    .bind(now_ms)
    .bind(limit as i64)
    .fetch_all(connection)
    .await
    .map_err(failed("read planned work"))?;
    rows.iter().map(item).collect()
}

pub(super) async fn count_held(connection: &mut SqliteConnection, hold: Hold) -> Result<u64> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM items WHERE hold = ? AND hold > 0")
        .bind(hold.number())
        .fetch_one(connection)
        .await
        .map_err(failed("count held rows"))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Held unpins of one kind after a CID in byte order.
pub(super) async fn held(
    connection: &mut SqliteConnection,
    hold: Hold,
    after: &[u8],
    limit: usize,
) -> Result<Vec<Item>> {
    let rows = sqlx::query(select!(
        "INDEXED BY items_held \
         WHERE hold = ? AND hold > 0 AND cid > ? ORDER BY cid LIMIT +?"
    ))
    .bind(hold.number())
    .bind(after)
    .bind(limit as i64)
    .fetch_all(connection)
    .await
    .map_err(failed("read held rows"))?;
    rows.iter().map(item).collect()
}

/// Turns claims into adoptions in some rows after a row, and holds their unpins. Gives the last row it looked at.
pub(super) async fn disown(
    connection: &mut SqliteConnection,
    after: i64,
    limit: i64,
    why: &str,
) -> Result<Option<i64>> {
    let last: Option<i64> =
        sqlx::query_scalar("SELECT max(id) FROM (SELECT id FROM items WHERE id > ? ORDER BY id LIMIT +?)")
            .bind(after)
            .bind(limit)
            .fetch_one(&mut *connection)
            .await
            .map_err(failed("read rows"))?;
    let Some(last) = last else { return Ok(None) };
    sqlx::query(
        "UPDATE items SET ownership = 3, hold = iif(todo = 2, 3, hold), next_try = iif(todo = 2, NULL, next_try), \
         error = iif(todo = 2, ?, error) WHERE id > ? AND id <= ? AND ownership = 1",
    )
    .bind(why)
    .bind(after)
    .bind(last)
    .execute(connection)
    .await
    .map_err(failed("disown rows"))?;
    Ok(Some(last))
}

pub(super) async fn upsert(connection: &mut SqliteConnection, statements: &Statements, items: &[&Item]) -> Result<()> {
    for (index, piece) in pieces(items) {
        let mut query = sqlx::query(sql(&statements.upsert[index]));
        for item in piece {
            query = query
                .bind(item.cid.as_slice())
                .bind(item.revision as i64)
                .bind(item.class.number())
                .bind(i64::from(item.status.bit()))
                .bind(item.todo.number())
                .bind(item.ownership.number())
                .bind(item.hold.number())
                .bind(i64::from(item.mode == PinMode::Direct))
                .bind(Lane::of(item).number())
                .bind(item.next_try_ms)
                .bind(i64::from(item.attempts))
                .bind(i64::from(item.reason as i32))
                .bind(item.error.as_str())
                .bind(item.changed_ms)
                .bind(item.pin.as_slice())
                .bind(item.fetched.blocks as i64)
                .bind(item.fetched.bytes as i64)
                .bind(item.fetched.last_block_ms);
        }
        query.execute(&mut *connection).await.map_err(failed("write rows"))?;
    }
    Ok(())
}

type Settling<'q> = QueryScalar<'q, Sqlite, i64, SqliteArguments>;

/// Runs a statement about rows that stand as the settlements say; `bind` adds what it writes. Gives the rows that did.
async fn where_standing(
    connection: &mut SqliteConnection,
    texts: &[Arc<str>; LENGTHS.len()],
    settlements: &[&Settlement],
    doing: &'static str,
    bind: for<'q> fn(Settling<'q>, &'q Item) -> Settling<'q>,
) -> Result<Vec<i64>> {
    let mut settled = Vec::with_capacity(settlements.len());
    for (index, piece) in pieces(settlements) {
        let mut query = sqlx::query_scalar::<_, i64>(sql(&texts[index]));
        for settlement in piece {
            query = query
                .bind(settlement.item.id)
                .bind(settlement.revision as i64)
                .bind(i64::from(settlement.status.bit()))
                .bind(settlement.todo.number());
            query = bind(query, &settlement.item);
        }
        settled.extend(query.fetch_all(&mut *connection).await.map_err(failed(doing))?);
    }
    Ok(settled)
}

/// Writes what an attempt may change, where the row stands as the settlement says. Gives the rows it wrote.
pub(super) async fn settle(
    connection: &mut SqliteConnection,
    statements: &Statements,
    settlements: &[&Settlement],
) -> Result<Vec<i64>> {
    let (claims, others): (Vec<&Settlement>, Vec<&Settlement>) =
        settlements.iter().partition(|settlement| settlement.is_claim);
    let mut settled = where_standing(connection, &statements.claim, &claims, "claim rows", |query, item| {
        query.bind(item.ownership.number())
    })
    .await?;
    let others = where_standing(connection, &statements.settle, &others, "settle rows", |query, item| {
        query
            .bind(i64::from(item.status.bit()))
            .bind(item.todo.number())
            .bind(item.ownership.number())
            .bind(item.hold.number())
            .bind(Lane::of(item).number())
            .bind(item.next_try_ms)
            .bind(i64::from(item.attempts))
            .bind(i64::from(item.reason as i32))
            .bind(item.error.as_str())
            .bind(item.changed_ms)
            .bind(item.fetched.blocks as i64)
            .bind(item.fetched.bytes as i64)
            .bind(item.fetched.last_block_ms)
    });
    settled.extend(others.await?);
    Ok(settled)
}

/// Deletes rows that stand as the settlements say. Gives those it deleted.
pub(super) async fn settle_away(
    connection: &mut SqliteConnection,
    statements: &Statements,
    settlements: &[&Settlement],
) -> Result<Vec<i64>> {
    where_standing(connection, &statements.delete, settlements, "delete rows", |query, _| query).await
}

pub(super) async fn delete(connection: &mut SqliteConnection, statements: &Statements, ids: &[i64]) -> Result<()> {
    for (index, piece) in pieces(ids) {
        let mut query = sqlx::query(sql(&statements.delete_any[index]));
        for id in piece {
            query = query.bind(*id);
        }
        query.execute(&mut *connection).await.map_err(failed("delete rows"))?;
    }
    Ok(())
}

fn item(row: &SqliteRow) -> Result<Item> {
    let lane: i64 = row.get(9);
    let todo = Todo::from_number(row.get(5)).ok_or_else(|| bad_row("todo"))?;
    Ok(Item {
        id: row.get(0),
        cid: row.get(1),
        revision: unsigned(row.get(2)),
        class: Class::from_number(row.get(3)).ok_or_else(|| bad_row("class"))?,
        status: status(row.get(4)),
        todo,
        ownership: Ownership::from_number(row.get(6)).ok_or_else(|| bad_row("ownership"))?,
        hold: Hold::from_number(row.get(7)).ok_or_else(|| bad_row("hold"))?,
        mode: if row.get::<i64, _>(8) == 0 { PinMode::Recursive } else { PinMode::Direct },
        priority: [Lane::New, Lane::Again].map(Lane::number).contains(&lane),
        next_try_ms: row.get(10),
        attempts: u32::try_from(row.get::<i64, _>(11)).unwrap_or(u32::MAX),
        reason: i32::try_from(row.get::<i64, _>(12)).ok().and_then(|n| Reason::try_from(n).ok()).unwrap_or_default(),
        error: row.get(13),
        changed_ms: row.get(14),
        pin: row.get(15),
        fetched: Fetched { blocks: unsigned(row.get(16)), bytes: unsigned(row.get(17)), last_block_ms: row.get(18) },
    })
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn status(number: i64) -> TrackerStatus {
    u32::try_from(number).map_or(TrackerStatus::Undefined, TrackerStatus::from_bit)
}

fn bad_row(column: &str) -> ConnectorError {
    ConnectorError::Corrupt { what: format!("a row has an unknown {column}") }
}
