//! Which nodes hold a session group: rendezvous hashing, the same answer on every node and in every version. Pure.

use crate::id::{GroupId, NodeId};

/// The `count` nodes with the highest score for a group, sorted by id.
pub fn place(group: GroupId, nodes: &[NodeId], count: u32) -> Vec<NodeId> {
    let mut scored: Vec<(u64, NodeId)> = nodes
        .iter()
        .map(|node| (score(group, *node), *node))
        .collect();
    scored.sort_unstable_by(|a, b| b.cmp(a));
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut chosen: Vec<NodeId> = scored
        .into_iter()
        .take(count)
        .map(|(_, node)| node)
        .collect();
    chosen.sort_unstable();
    chosen
}

/// splitmix64's finaliser over both ids.
fn score(group: GroupId, node: NodeId) -> u64 {
    let mut x = node.0 ^ u64::from(group.0).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u64) -> Vec<NodeId> {
        (1..=count).map(|n| NodeId(n * 7_919)).collect()
    }

    #[test]
    fn groups_spread_over_all_nodes() {
        let nodes = nodes(10);
        let mut held = vec![0; nodes.len()];
        for group in 1..=100 {
            let chosen = place(GroupId(group), &nodes, 3);
            assert_eq!(chosen.len(), 3);
            for node in chosen {
                held[nodes.iter().position(|n| *n == node).unwrap_or(0)] += 1;
            }
        }
        assert!(
            held.iter().all(|count| (10..60).contains(count)),
            "{held:?}"
        );
    }

    #[test]
    fn a_new_node_moves_few_replicas() {
        let (before, after) = (nodes(10), nodes(11));
        let moved = (1..=100)
            .filter(|g| place(GroupId(*g), &before, 3) != place(GroupId(*g), &after, 3))
            .count();
        assert!(moved < 50, "{moved}");
    }

    #[test]
    fn few_nodes_hold_everything() {
        assert_eq!(place(GroupId(1), &nodes(2), 3), nodes(2));
    }
}
