//! What a client says, written here from the protocol's document alone; and what a server answered, taken apart.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block::ReadAt;
use serve::nbd::{Export, Exports, Negotiated, Traffic, Transmission, negotiate};
use serve::{Error, Unwatched};

use super::disks::Numbers;

/// Bytes of a client, one message after the other.
#[derive(Debug, Clone, Default)]
pub struct Speech(pub Vec<u8>);

impl Speech {
    /// Begins with the client's flags.
    pub fn new(flags: u32) -> Self {
        Self(flags.to_be_bytes().to_vec())
    }

    pub fn option(mut self, option: u32, data: &[u8]) -> Self {
        self.0.extend_from_slice(b"IHAVEOPT");
        self.0.extend_from_slice(&option.to_be_bytes());
        self.0.extend_from_slice(&(data.len() as u32).to_be_bytes());
        self.0.extend_from_slice(data);
        self
    }

    /// GO or INFO for a name, with questions.
    pub fn choose(self, option: u32, name: &str, questions: &[u16]) -> Self {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&(questions.len() as u16).to_be_bytes());
        for question in questions {
            data.extend_from_slice(&question.to_be_bytes());
        }
        self.option(option, &data)
    }

    /// LIST or SET of contexts.
    pub fn contexts(self, option: u32, name: &str, queries: &[&str]) -> Self {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        for query in queries {
            data.extend_from_slice(&(query.len() as u32).to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        self.option(option, &data)
    }

    pub fn request(
        mut self,
        flags: u16,
        command: u16,
        cookie: u64,
        offset: u64,
        length: u32,
    ) -> Self {
        self.0.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        self.0.extend_from_slice(&flags.to_be_bytes());
        self.0.extend_from_slice(&command.to_be_bytes());
        self.0.extend_from_slice(&cookie.to_be_bytes());
        self.0.extend_from_slice(&offset.to_be_bytes());
        self.0.extend_from_slice(&length.to_be_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// What came of a conversation.
pub struct Heard {
    pub negotiated: Vec<u8>,
    pub transmitted: Vec<u8>,
    pub outcome: Result<bool, Error>,
}

/// A server's half of a conversation in which the client says all at once. The outcome: whether an export was chosen.
pub fn converse(exports: &Exports, speech: &[u8]) -> Heard {
    let mut input = speech;
    let mut heard = Heard {
        negotiated: Vec::new(),
        transmitted: Vec::new(),
        outcome: Ok(false),
    };
    let agreed = match negotiate(&mut input, &mut heard.negotiated, exports) {
        Ok(Negotiated::Chosen(agreed)) => agreed,
        Ok(Negotiated::Left) => return heard,
        Err(error) => {
            heard.outcome = Err(error);
            return heard;
        }
    };
    let traffic = Traffic::default();
    let stopping = AtomicBool::new(false);
    let transmission = Transmission {
        agreed: &agreed,
        stopping: &stopping,
        hang_up: &|| {},
        watch: &Unwatched,
        traffic: &traffic,
    };
    heard.outcome = transmission
        .run(&mut input, &mut heard.transmitted)
        .map(|()| true);
    heard
}

/// Two exports, `a` and `b`.
pub fn two_exports(a: &Arc<Numbers>, b: &Arc<Numbers>) -> Exports {
    let mut one = Export::new("a", Arc::clone(a) as Arc<dyn ReadAt>);
    one.description = "the first".to_owned();
    let two = Export::new("b", Arc::clone(b) as Arc<dyn ReadAt>);
    Exports::new(vec![one, two]).expect("two names")
}

/// A reply to an option: option, answer, data.
pub type OptionReply = (u32, u32, Vec<u8>);

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Takes the replies to options apart, behind the greeting.
#[track_caller]
pub fn option_replies(heard: &[u8]) -> Vec<OptionReply> {
    assert_eq!(&heard[..16], b"NBDMAGICIHAVEOPT");
    assert_eq!(number(&heard[16..18]), 3, "fixed newstyle, no zeroes");
    let mut rest = &heard[18..];
    let mut replies = Vec::new();
    while !rest.is_empty() {
        assert_eq!(number(&rest[..8]), 0x0003_e889_0455_65a9);
        let length = number(&rest[16..20]) as usize;
        replies.push((
            number(&rest[8..12]) as u32,
            number(&rest[12..16]) as u32,
            rest[20..20 + length].to_vec(),
        ));
        rest = &rest[20 + length..];
    }
    replies
}

/// A message of the second half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Fault, cookie. Bytes follow, when it answers a read.
    Simple(u32, u64),
    /// Flags, type, cookie, payload.
    Chunk(u16, u16, u64, Vec<u8>),
}

/// Takes structured replies apart.
#[track_caller]
pub fn messages(heard: &[u8]) -> Vec<Message> {
    let mut rest = heard;
    let mut found = Vec::new();
    while !rest.is_empty() {
        match number(&rest[..4]) {
            0x6744_6698 => {
                found.push(Message::Simple(
                    number(&rest[4..8]) as u32,
                    number(&rest[8..16]),
                ));
                rest = &rest[16..];
            }
            0x668e_33ef => {
                let length = number(&rest[16..20]) as usize;
                found.push(Message::Chunk(
                    number(&rest[4..6]) as u16,
                    number(&rest[6..8]) as u16,
                    number(&rest[8..16]),
                    rest[20..20 + length].to_vec(),
                ));
                rest = &rest[20 + length..];
            }
            other => panic!("{other:#x} where a reply begins"),
        }
    }
    found
}

/// Puts a read together from its chunks; `None` for one that failed.
#[track_caller]
pub fn read_of(messages: &[Message], cookie: u64, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0xEE; length];
    let mut covered = 0;
    let mut is_done = false;
    for message in messages {
        let Message::Chunk(flags, kind, one, payload) = message else {
            continue;
        };
        if *one != cookie {
            continue;
        }
        assert!(!is_done, "nothing follows the last chunk");
        is_done = flags & 1 == 1;
        if *kind >= 1 << 15 {
            assert!(is_done, "an error comes last here");
            return None;
        }
        let at = (number(&payload[..8]) - offset) as usize;
        let piece = match *kind {
            1 => payload[8..].to_vec(),
            2 => vec![0; number(&payload[8..12]) as usize],
            other => panic!("a chunk of type {other}"),
        };
        assert!(!piece.is_empty());
        covered += piece.len();
        bytes[at..at + piece.len()].copy_from_slice(&piece);
    }
    assert!(is_done, "the last chunk came");
    assert_eq!(covered, length, "every byte came once");
    Some(bytes)
}

/// The runs that an answer to BLOCK_STATUS tells: length and state.
pub fn runs_of(payload: &[u8]) -> Vec<(u64, u64)> {
    assert_eq!(number(&payload[..4]), 1, "the context's number");
    payload[4..]
        .chunks(8)
        .map(|run| (number(&run[..4]), number(&run[4..])))
        .collect()
}
