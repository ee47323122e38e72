//! Real processes: single nodes and clusters of three under kill -9, pauses and cut links.
