//! Runs the cores: tasks, timers and calls around them. Everything here is IO and order; what is decided is decided in
//! the cores.

mod asking;
mod barriers;
mod catching_up;
mod discovery;
mod draining;
mod duties;
mod inbound;
mod joining;
mod kicks;
mod leases;
mod leaving;
mod life;
mod links;
mod living;
mod node;
mod problems;
mod reads;
mod receiving;
mod relay;
mod replicas;
pub(crate) mod retaining;
mod sessions;
mod start;
mod status;
mod telling;
mod times;

pub use joining::{JoinError, JoinPlan};
pub use leaving::LeaveError;
pub use life::Life;
pub use node::Node;
pub use start::{StartError, start};
pub use status::{GroupStatus, NodeStatus, State, Status};
