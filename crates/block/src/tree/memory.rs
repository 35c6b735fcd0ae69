//! Nodes in memory: for tests, for a tree that is small enough, and for what a peer has just sent.

use std::collections::HashMap;

use super::{Node, NodeSink, NodeSource};
use crate::{Error, ErrorKind, NodeHash, Result};

/// A map from node names to nodes. Unbounded: the caller knows how much it puts in.
#[derive(Debug, Clone, Default)]
pub struct NodeMap {
    nodes: HashMap<(u8, NodeHash), Node>,
}

impl NodeMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many nodes it holds.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether it holds this node.
    pub fn contains(&self, level: u8, hash: NodeHash) -> bool {
        self.nodes.contains_key(&(level, hash))
    }

    /// Every node with its level and name, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, NodeHash, &Node)> {
        self.nodes
            .iter()
            .map(|((level, hash), node)| (*level, *hash, node))
    }
}

impl NodeSource for NodeMap {
    fn node(&self, level: u8, hash: NodeHash) -> Result<Node> {
        self.nodes.get(&(level, hash)).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("tree node {hash} of level {level}"),
            )
        })
    }
}

impl NodeSink for NodeMap {
    fn put_node(&mut self, level: u8, hash: NodeHash, node: &Node) -> Result<()> {
        self.nodes.insert((level, hash), node.clone());
        Ok(())
    }
}

/// No node at all: what has none to offer, and what wants none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNodes;

impl NodeSource for NoNodes {
    fn node(&self, level: u8, hash: NodeHash) -> Result<Node> {
        Err(Error::new(
            ErrorKind::NotFound,
            format!("tree node {hash} of level {level}"),
        ))
    }
}

impl NodeSink for NoNodes {
    fn put_node(&mut self, _level: u8, _hash: NodeHash, _node: &Node) -> Result<()> {
        Ok(())
    }
}
