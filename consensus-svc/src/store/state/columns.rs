//! Columns of many rows that SQLite has put together to one row, taken apart again. What does not fit is damage.

use sqlx::sqlite::SqliteRow;

use crate::store::error::{Error, Result};
use crate::store::sqlite::field;

/// A column of many rows, as SQLite puts it together.
pub struct Numbers<'r>(Option<std::str::Split<'r, char>>);

impl<'r> Numbers<'r> {
    pub fn of(row: &'r SqliteRow, column: usize) -> Result<Numbers<'r>> {
        Ok(Numbers(field::<Option<&str>>(row, column)?.map(|text| text.split(','))))
    }

    /// `None`: after the last row.
    pub fn next(&mut self) -> Result<Option<i64>> {
        let text = self.0.as_mut().and_then(Iterator::next);
        text.map(|text| text.parse().map_err(|_| torn())).transpose()
    }

    /// Of a row that there is.
    pub fn must(&mut self) -> Result<i64> {
        self.next()?.ok_or_else(torn)
    }

    /// The same of a column that may be empty.
    pub fn may(&mut self) -> Result<Option<i64>> {
        match self.0.as_mut().and_then(Iterator::next).ok_or_else(torn)? {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| torn()),
        }
    }
}

/// The next `size` bytes.
pub fn piece<'r>(bytes: &mut &'r [u8], size: i64) -> Result<&'r [u8]> {
    let size = usize::try_from(size).map_err(|_| torn())?;
    let (piece, rest) = bytes.split_at_checked(size).ok_or_else(torn)?;
    *bytes = rest;
    Ok(piece)
}

pub fn torn() -> Error {
    Error::damaged("the columns of rows do not belong together")
}
