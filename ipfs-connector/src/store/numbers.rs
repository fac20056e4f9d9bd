//! The tracker's enums as numbers on disk. They are written for ever; new ones are added at the end.

use crate::tracker::operation::{Class, Hold, Ownership, Todo};

impl Class {
    pub const fn number(self) -> i64 {
        match self {
            Class::Gone => 0,
            Class::Here => 1,
            Class::Leaving => 2,
            Class::Remote => 3,
            Class::Meta => 4,
        }
    }

    pub const fn from_number(number: i64) -> Option<Class> {
        match number {
            0 => Some(Class::Gone),
            1 => Some(Class::Here),
            2 => Some(Class::Leaving),
            3 => Some(Class::Remote),
            4 => Some(Class::Meta),
            _ => None,
        }
    }
}

impl Todo {
    pub const fn number(self) -> i64 {
        match self {
            Todo::Nothing => 0,
            Todo::Pin => 1,
            Todo::Unpin => 2,
        }
    }

    pub const fn from_number(number: i64) -> Option<Todo> {
        match number {
            0 => Some(Todo::Nothing),
            1 => Some(Todo::Pin),
            2 => Some(Todo::Unpin),
            _ => None,
        }
    }
}

impl Ownership {
    pub const fn number(self) -> i64 {
        match self {
            Ownership::Unknown => 0,
            Ownership::Claimed => 1,
            Ownership::Foreign => 2,
            Ownership::Adopted => 3,
        }
    }

    pub const fn from_number(number: i64) -> Option<Ownership> {
        match number {
            0 => Some(Ownership::Unknown),
            1 => Some(Ownership::Claimed),
            2 => Some(Ownership::Foreign),
            3 => Some(Ownership::Adopted),
            _ => None,
        }
    }
}

impl Hold {
    pub const fn number(self) -> i64 {
        match self {
            Hold::Free => 0,
            Hold::Comparing => 1,
            Hold::Guarded => 2,
            Hold::Adopted => 3,
        }
    }

    pub const fn from_number(number: i64) -> Option<Hold> {
        match number {
            0 => Some(Hold::Free),
            1 => Some(Hold::Comparing),
            2 => Some(Hold::Guarded),
            3 => Some(Hold::Adopted),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: numbers on disk lead back to what they stand for.
    #[test]
    fn numbers_go_both_ways() {
        for number in 0..10 {
            assert!(Class::from_number(number).is_none_or(|class| class.number() == number));
            assert!(Todo::from_number(number).is_none_or(|todo| todo.number() == number));
            assert!(Ownership::from_number(number).is_none_or(|ownership| ownership.number() == number));
            assert!(Hold::from_number(number).is_none_or(|hold| hold.number() == number));
        }
    }
}
