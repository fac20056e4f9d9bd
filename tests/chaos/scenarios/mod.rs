//! One file for each kind of trouble.

mod cluster;
mod crash_commands;
mod crash_points;
mod damage;
mod disk_errors;
mod disk_refuses;
mod disk_stalls;
mod double_start;
mod lost_data;
mod membership;
mod nemesis;
mod partition;
mod permissions;
mod power;
mod replaced;
mod second_opener;
mod slow_links;

/// How consensus-svc ends after an error of its disk.
pub const EXIT_DISK: i32 = 74;
/// How it ends when what lies in its folder cannot be used.
pub const EXIT_REFUSED: i32 = 78;
