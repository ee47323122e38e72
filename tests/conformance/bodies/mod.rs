//! What happens in the tests, by area; `v311` and `v5` say which clause each body is for.

pub mod closing;
pub mod connecting;
pub mod disorder;
pub mod exact;
pub mod field;
pub mod header;
pub mod limited;
pub mod limits;
pub mod loose;
pub mod matching;
pub mod ordering;
pub mod pipelining;
pub mod properties;
pub mod publishing;
pub mod retaining;
pub mod sequence;
pub mod sessions;
pub mod shared;
pub mod slow;
pub mod strings;
pub mod subscribing;
pub mod websocket;
pub mod wills;
