//! The task that answers *is it pinned?* for single CIDs: what is asked while it reads is one question together.

use std::collections::HashMap;

use sqlx::{Connection as _, QueryBuilder, Sqlite, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use pinfold_common::Cid;

use super::{PinRow, failed, pin_row};
use crate::lists::pieces;
use crate::node::Result;

/// CIDs in one question.
const AT_ONCE: usize = 128;

pub struct Question {
    pub cid: Cid,
    pub answer: oneshot::Sender<Result<Option<PinRow>>>,
}

/// Ends when nobody can ask any more, or with `closing`; the queue is gone only after the connection is.
pub async fn run(mut connection: SqliteConnection, mut queue: mpsc::Receiver<Question>, closing: CancellationToken) {
    let mut questions = Vec::with_capacity(AT_ONCE);
    while let Some(1..) = closing.run_until_cancelled(queue.recv_many(&mut questions, AT_ONCE)).await {
        let found = rows(&mut connection, &questions).await;
        for Question { cid, answer } in questions.drain(..) {
            let row = found.as_ref().map(|rows| rows.get(&cid).copied()).map_err(Clone::clone);
            // Whoever asked may have gone.
            let _ = answer.send(row);
        }
    }
    // It has written nothing.
    let _ = connection.close().await;
}

async fn rows(connection: &mut SqliteConnection, questions: &[Question]) -> Result<HashMap<Cid, PinRow>> {
    let mut found = HashMap::with_capacity(questions.len());
    for (_, piece) in pieces(questions) {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT cid, mode, pinning, touched_at FROM pins WHERE cid IN (");
        let mut list = query.separated(", ");
        for question in piece {
            list.push_bind(question.cid.to_bytes());
        }
        list.push_unseparated(")");
        for row in query.build().fetch_all(&mut *connection).await.map_err(failed("read pins"))? {
            let row = pin_row(&row)?;
            found.insert(row.cid, row);
        }
    }
    Ok(found)
}
