//! How far a draining peer has come, for scripts and for eyes. What it means is consensus-svc's (`membership`).

use pinfold_proto::types;
use pinfold_proto::types::departure::Phase;
use serde::{Deserialize, Serialize};

/// In answers of REST and of `ctl --enc json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DepartureJson {
    /// `draining`, `reallocating`, `drained`, `removed`
    pub phase: String,
    /// Items that are still allocated to it.
    pub allocated: u64,
    /// Items that wait until their new copies are confirmed.
    pub leaving: u64,
    /// It will be removed when nothing is left.
    pub removing: bool,
    /// What stands against the removal now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
}

impl DepartureJson {
    pub fn new(departure: &types::Departure) -> DepartureJson {
        DepartureJson {
            phase: phase_name(departure.phase()).to_owned(),
            allocated: departure.allocated,
            leaving: departure.leaving,
            removing: departure.removing,
            waits_for: departure.waits_for.clone(),
        }
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "not draining",
        Phase::Draining => "draining",
        Phase::Reallocating => "reallocating",
        Phase::Drained => "drained",
        Phase::Removed => "removed",
    }
}

/// The same for eyes: `reallocating, 12 items left (9 allocated there, 3 not confirmed elsewhere)`.
pub fn text(departure: &types::Departure) -> String {
    let mut text = phase_name(departure.phase()).to_owned();
    let items = departure.allocated + departure.leaving;
    if items > 0 {
        let (allocated, leaving) = (departure.allocated, departure.leaving);
        text.push_str(&format!(
            ", {items} items left ({allocated} allocated there, {leaving} not confirmed elsewhere)"
        ));
    } else if !departure.waits_for.is_empty() {
        text.push_str(&format!(", but {}", departure.waits_for));
    }
    text
}
