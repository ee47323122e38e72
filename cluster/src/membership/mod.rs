//! How nodes find each other and become one cluster.

mod bootstrap;
mod placement;
mod plan;

pub use bootstrap::{Bootstrap, Grant, Probed, Step};
pub use placement::place;
pub use plan::{Voting, holds_nothing, needed_by, next_move, voter_count};
