//! What Flotte nodes say to each other and agree on: the generated code of `proto/*.proto`.
//! It holds no logic; `flotte-cluster` is its only user.
#![allow(
    clippy::doc_lazy_continuation,
    clippy::large_enum_variant,
    rustdoc::all
)]

tonic::include_proto!("flotte.v1");
