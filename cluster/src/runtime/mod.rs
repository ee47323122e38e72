//! Runs the cores: tasks, timers and calls around them. Everything here is IO and order; what is decided is decided in
//! the cores.

mod barriers;
mod discovery;
mod duties;
mod inbound;
mod kicks;
mod leases;
mod leaving;
mod life;
mod links;
mod living;
mod node;
mod reads;
mod replicas;
mod sessions;
mod start;
mod status;

pub use leaving::LeaveError;
pub use life::Life;
pub use node::Node;
pub use start::{StartError, start};
pub use status::{GroupStatus, NodeStatus, State, Status};
