//! The estate as CIM, asked through both halves of WS-Management.

mod checkpoints;
mod cluster;
mod inventory;
mod refusals;
mod stage;
mod systems;
