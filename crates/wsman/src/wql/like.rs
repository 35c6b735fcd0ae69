//! The patterns of `LIKE`: `%` any text, `_` any character, `[a-f]` one of these, `[^a-f]` none of these.
//!
//! **Invariant.** Matching takes time in proportion to pattern times text, whatever the pattern.

/// A pattern, compared without case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LikePattern {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    AnyText,
    AnyCharacter,
    Character(char),
    OneOf(Vec<(char, char)>),
    NoneOf(Vec<(char, char)>),
}

fn fold(character: char) -> char {
    character.to_lowercase().next().unwrap_or(character)
}

impl LikePattern {
    /// Reads a pattern; a bracket that is not closed stands for itself.
    pub fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        let characters: Vec<char> = text.chars().collect();
        let mut rest = characters.as_slice();
        while let [first, after @ ..] = rest {
            rest = after;
            pieces.push(match first {
                '%' => Piece::AnyText,
                '_' => Piece::AnyCharacter,
                '[' => match set(after) {
                    Some((piece, behind)) => {
                        rest = behind;
                        piece
                    }
                    None => Piece::Character('['),
                },
                other => Piece::Character(fold(*other)),
            });
        }
        pieces.dedup_by(|a, b| *a == Piece::AnyText && *b == Piece::AnyText);
        Self {
            text: text.to_owned(),
            pieces,
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().map(fold).collect();
        let (mut at, mut piece) = (0_usize, 0_usize);
        // Where the last "any text" stands, and what it has taken so far: going back to the last alone is enough.
        let mut back: Option<(usize, usize)> = None;
        while let Some(character) = text.get(at) {
            match self.pieces.get(piece) {
                Some(Piece::AnyText) => {
                    back = Some((piece, at));
                    piece = piece.saturating_add(1);
                    continue;
                }
                Some(wanted) if wanted.takes(*character) => {
                    at = at.saturating_add(1);
                    piece = piece.saturating_add(1);
                    continue;
                }
                _ => {}
            }
            let Some((any, taken)) = back else {
                return false;
            };
            let taken = taken.saturating_add(1);
            back = Some((any, taken));
            at = taken;
            piece = any.saturating_add(1);
        }
        let rest = self.pieces.get(piece..).unwrap_or_default();
        rest.iter().all(|it| *it == Piece::AnyText)
    }
}

impl Piece {
    fn takes(&self, character: char) -> bool {
        let is_in =
            |ranges: &[(char, char)]| ranges.iter().any(|it| (it.0..=it.1).contains(&character));
        match self {
            Self::AnyText | Self::AnyCharacter => true,
            Self::Character(wanted) => *wanted == character,
            Self::OneOf(ranges) => is_in(ranges),
            Self::NoneOf(ranges) => !is_in(ranges),
        }
    }
}

/// The set behind an opening bracket, and what follows its closing one.
fn set(rest: &[char]) -> Option<(Piece, &[char])> {
    let end = rest.iter().position(|it| *it == ']')?;
    let (inner, after) = (rest.get(..end)?, rest.get(end.checked_add(1)?..)?);
    let (is_none_of, inner) = match inner {
        ['^', inner @ ..] => (true, inner),
        inner => (false, inner),
    };
    let mut ranges = Vec::new();
    let mut left = inner;
    loop {
        left = match left {
            [] => break,
            [from, '-', to, after @ ..] => {
                ranges.push((fold(*from), fold(*to)));
                after
            }
            [one, after @ ..] => {
                ranges.push((fold(*one), fold(*one)));
                after
            }
        };
    }
    let piece = if is_none_of {
        Piece::NoneOf(ranges)
    } else {
        Piece::OneOf(ranges)
    };
    Some((piece, after))
}
