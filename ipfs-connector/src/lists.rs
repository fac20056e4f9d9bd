//! Statements that name many rows come in a few lengths, so that SQLite prepares each of them once and a list of any
//! length is few statements: preparing one costs more than to run it, and each one is a hand-over to SQLite's thread.

/// Rows in one statement, largest first.
pub const LENGTHS: [usize; 7] = [64, 32, 16, 8, 4, 2, 1];

/// Cuts a list into pieces that there are statements for, with the index of their length.
pub fn pieces<T>(mut list: &[T]) -> impl Iterator<Item = (usize, &[T])> {
    std::iter::from_fn(move || {
        let index = LENGTHS.iter().position(|length| *length <= list.len())?;
        let (piece, rest) = list.split_at(LENGTHS[index]);
        list = rest;
        Some((index, piece))
    })
}

/// The same where the pieces are taken apart.
pub fn owned_pieces<T>(mut list: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    std::iter::from_fn(move || {
        let length = LENGTHS.iter().find(|length| **length <= list.len())?;
        let rest = list.split_off(*length);
        Some(std::mem::replace(&mut list, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: pieces are as long as there are statements for, as few as can be, and together the list.
    #[test]
    fn lists_are_cut() {
        for (length, expected) in [(0, &[][..]), (1, &[1]), (7, &[4, 2, 1]), (64, &[64]), (150, &[64, 64, 16, 4, 2])] {
            let list: Vec<usize> = (0..length).collect();
            let lengths: Vec<usize> = pieces(&list).map(|(index, _)| LENGTHS[index]).collect();
            assert_eq!(lengths, expected);
            assert_eq!(pieces(&list).flat_map(|(_, piece)| piece.to_vec()).collect::<Vec<_>>(), list);
            let owned: Vec<Vec<usize>> = owned_pieces(list.clone()).collect();
            assert_eq!(owned.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            assert_eq!(owned.concat(), list);
        }
    }
}
