//! One test for each clause of the standards that can be observed from outside, run against a single
//! node and against a follower of a cluster of three. `CLAUSES.md` lists every clause.
//!
//! `v311` and `v5` map clauses to bodies; the bodies say what happens and take the version from their
//! target. With `FLOTTE_TEST_ADDR` the single node is whatever broker listens there.

#[macro_use]
mod target;

mod bodies;
mod clauses;
mod configured;
mod malformed;
mod v31;
mod v311;
mod v5;
