//! Properties of the session: random operations against a peer that keeps its own books and is
//! strict, so that each packet or answer it should not get fails the test.

mod inbound;
mod outbound;
