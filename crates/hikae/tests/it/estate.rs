//! The driver for Hyper-V against the lab's estate, neither knowing the other: in one process, without sockets unless told.
//!
//! ```text
//!   HyperV ─ WsmanClient ─► Odd (says the same otherwise) ─┬─────────────────────────► WsmanService ─► HostProvider ─► Estate
//!      │                                                   └ HttpTransport ═ NTLM ═ Rechunking ═ LabWire ─┘               ▲
//!      └ LabFiles ── frozen files, as far as a host lets them be read ──────────────────────────────────────────────────┘
//! ```
//!
//! | module | what it proves |
//! |---|---|
//! | [`conformance`] | the driver keeps its contract on every generation, with every kind of guest, storage and disk |
//! | [`switches`] | it works, or says why not, whatever the answer to what nobody has verified |
//! | [`odd`] | it understands servers that say the same in other words, in small pieces, slowly |
//! | [`hostile`] | servers that lie cost it little time and memory, and end in errors that say where |
//! | [`many`] | how much is asked of a node does not depend on how many machines it has |

mod conformance;
mod files;
mod hostile;
mod many;
mod odd;
mod odd_xml;
mod place;
mod rechunking;
mod round;
mod switches;
