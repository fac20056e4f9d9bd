//! `ctl repin …`

mod ls;
pub mod status;

use pinfold_proto::types::repin_change_call::Switch;
use pinfold_proto::types::{RepinChangeCall, RepinStatusCall};

use crate::cli::{Encoding, Rate, Repin};
use crate::client::{Client, Outcome};

pub async fn run(client: &Client, encoding: Encoding, command: Repin) -> Outcome {
    let change = match command {
        Repin::Ls => return ls::run(client, encoding).await,
        Repin::Status => {
            let reply = client.repin().status(RepinStatusCall::default()).await?.into_inner();
            return status::print(encoding, &reply);
        }
        Repin::Pause => RepinChangeCall { switch: Switch::Pause as i32, ..RepinChangeCall::default() },
        Repin::Resume => RepinChangeCall { switch: Switch::Resume as i32, ..RepinChangeCall::default() },
        Repin::Rate { pins_per_second: Rate::Default } => {
            RepinChangeCall { default_rate: true, ..RepinChangeCall::default() }
        }
        Repin::Rate { pins_per_second: Rate::PerSecond(pins_per_second) } => {
            RepinChangeCall { pins_per_second, ..RepinChangeCall::default() }
        }
    };
    let reply = client.repin().change(change).await?.into_inner();
    status::print(encoding, &reply)
}
