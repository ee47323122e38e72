//! One test for each clause of the standards that can be observed from outside.
