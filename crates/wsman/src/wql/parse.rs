//! From pieces to a query.
//!
//! **Invariants.** Recursion only through parentheses and `NOT`, and bounded; at most [`CONDITIONS_MAX`] conditions.

use super::token::{Token, tokens};
use super::{
    Comparison, Condition, LikePattern, Literal, PropertyName, Query, Related, RelatedExtent,
    Select,
};
use crate::cim::{CimPath, ClassName, Namespace};
use crate::message::{Association, AssociationQuery};
use crate::{Error, Result};

const DEPTH_MAX: usize = 64;
const CONDITIONS_MAX: usize = 2000;
const PROPERTIES_MAX: usize = 1000;
const INSIDE_MAX: usize = 8;

pub(super) fn parse(text: &str) -> Result<Query> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
        conditions: 0,
        end: text.len(),
    };
    let query = if parser.takes_word("SELECT") {
        Query::Select(parser.select()?)
    } else if parser.takes_word("ASSOCIATORS") {
        Query::Related(parser.related(Association::Associators)?)
    } else if parser.takes_word("REFERENCES") {
        Query::Related(parser.related(Association::References)?)
    } else {
        return Err(parser.error("SELECT, ASSOCIATORS or REFERENCES expected"));
    };
    match parser.peek() {
        None => Ok(query),
        Some(_) => Err(parser.error("the end expected")),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    conditions: usize,
    end: usize,
}

impl Parser {
    fn error(&self, what: &str) -> Error {
        let byte = self.tokens.get(self.at).map_or(self.end, |it| it.0);
        Error::malformed(format!("query, byte {byte}: {what}"))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|it| &it.1)
    }

    fn advance(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let is_it = matches!(self.peek(), Some(Token::Word(it)) if it.eq_ignore_ascii_case(word));
        if is_it {
            self.advance();
        }
        is_it
    }

    fn takes_sign(&mut self, sign: &str) -> bool {
        let is_it = matches!(self.peek(), Some(Token::Sign(it)) if *it == sign);
        if is_it {
            self.advance();
        }
        is_it
    }

    fn must_word(&mut self, word: &str) -> Result<()> {
        if self.takes_word(word) {
            Ok(())
        } else {
            Err(self.error(&format!("{word} expected")))
        }
    }

    fn name(&mut self) -> Result<String> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let word = word.clone();
                self.advance();
                Ok(word)
            }
            _ => Err(self.error("a name expected")),
        }
    }

    fn property(&mut self) -> Result<PropertyName> {
        let name = self.name()?;
        let mut inside = Vec::new();
        while self.takes_sign(".") {
            if inside.len() >= INSIDE_MAX {
                return Err(Error::limit("query: too many names inside of each other"));
            }
            inside.push(self.name()?);
        }
        Ok(PropertyName { name, inside })
    }

    fn select(&mut self) -> Result<Select> {
        let mut properties = Vec::new();
        if !self.takes_sign("*") {
            loop {
                if properties.len() >= PROPERTIES_MAX {
                    return Err(Error::limit("query: too many properties"));
                }
                properties.push(self.property()?);
                if !self.takes_sign(",") {
                    break;
                }
            }
        }
        self.must_word("FROM")?;
        let class = ClassName::new(self.name()?);
        let condition = if self.takes_word("WHERE") {
            Some(self.any(0)?)
        } else {
            None
        };
        Ok(Select {
            properties,
            class,
            condition,
        })
    }

    fn any(&mut self, depth: usize) -> Result<Condition> {
        let mut all = vec![self.all(depth)?];
        while self.takes_word("OR") {
            all.push(self.all(depth)?);
        }
        Ok(one_or(all, Condition::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Condition> {
        let mut all = vec![self.factor(depth)?];
        while self.takes_word("AND") {
            all.push(self.factor(depth)?);
        }
        Ok(one_or(all, Condition::All))
    }

    fn factor(&mut self, depth: usize) -> Result<Condition> {
        if depth >= DEPTH_MAX {
            return Err(Error::limit("query: too many parentheses"));
        }
        let deeper = depth.saturating_add(1);
        if self.takes_word("NOT") {
            return Ok(Condition::Not(Box::new(self.factor(deeper)?)));
        }
        if self.takes_sign("(") {
            let inner = self.any(deeper)?;
            return if self.takes_sign(")") {
                Ok(inner)
            } else {
                Err(self.error("a closing parenthesis expected"))
            };
        }
        self.conditions = self.conditions.saturating_add(1);
        if self.conditions > CONDITIONS_MAX {
            return Err(Error::limit("query: too many conditions"));
        }
        self.test()
    }

    /// A property and what is asked of it; or, as WMI takes it too, a literal on the left.
    fn test(&mut self) -> Result<Condition> {
        if let Some(left) = self.literal() {
            let comparison = turned(self.comparison()?);
            let property = self.property()?;
            return self.compared(property, comparison, left);
        }
        let property = self.property()?;
        if self.takes_word("IS") {
            let is_not = self.takes_word("NOT");
            self.must_word("NULL")?;
            let test = Condition::IsNull(property);
            return Ok(if is_not {
                Condition::Not(Box::new(test))
            } else {
                test
            });
        }
        if self.takes_word("LIKE") {
            return match self.literal() {
                Some(Literal::Text(text)) => Ok(Condition::Like(property, LikePattern::new(&text))),
                _ => Err(self.error("a pattern in quotes expected")),
            };
        }
        if self.takes_word("ISA") {
            return match self.literal() {
                Some(Literal::Text(text)) => Ok(Condition::IsA(property, ClassName::new(text))),
                _ => Ok(Condition::IsA(property, ClassName::new(self.name()?))),
            };
        }
        let comparison = self.comparison()?;
        let literal = self
            .literal()
            .ok_or_else(|| self.error("a value expected"))?;
        self.compared(property, comparison, literal)
    }

    fn compared(
        &self,
        property: PropertyName,
        comparison: Comparison,
        literal: Literal,
    ) -> Result<Condition> {
        match (comparison, literal) {
            (Comparison::Equal, Literal::Null) => Ok(Condition::IsNull(property)),
            (Comparison::NotEqual, Literal::Null) => {
                Ok(Condition::Not(Box::new(Condition::IsNull(property))))
            }
            (_, Literal::Null) => Err(self.error("NULL has no order")),
            (comparison, literal) => Ok(Condition::Compare(property, comparison, literal)),
        }
    }

    fn comparison(&mut self) -> Result<Comparison> {
        let comparison = match self.peek() {
            Some(Token::Sign("=")) => Comparison::Equal,
            Some(Token::Sign("!=" | "<>")) => Comparison::NotEqual,
            Some(Token::Sign("<")) => Comparison::Less,
            Some(Token::Sign("<=")) => Comparison::LessOrEqual,
            Some(Token::Sign(">")) => Comparison::Greater,
            Some(Token::Sign(">=")) => Comparison::GreaterOrEqual,
            _ => return Err(self.error("a comparison expected")),
        };
        self.advance();
        Ok(comparison)
    }

    fn literal(&mut self) -> Option<Literal> {
        let literal = match self.peek()? {
            Token::Text(text) => Literal::Text(text.clone()),
            Token::Number(digits) => number(digits)?,
            Token::Word(word) if word.eq_ignore_ascii_case("TRUE") => Literal::Boolean(true),
            Token::Word(word) if word.eq_ignore_ascii_case("FALSE") => Literal::Boolean(false),
            Token::Word(word) if word.eq_ignore_ascii_case("NULL") => Literal::Null,
            Token::Word(word) if word.eq_ignore_ascii_case("__SERVER") => {
                // On the left it is the property of this name.
                let next = self.tokens.get(self.at.saturating_add(1)).map(|it| &it.1);
                if matches!(next, Some(Token::Sign("=" | "!=" | "<>"))) {
                    return None;
                }
                Literal::Server
            }
            _ => return None,
        };
        self.advance();
        Some(literal)
    }

    fn related(&mut self, kind: Association) -> Result<Related> {
        self.must_word("OF")?;
        let object = match self.peek() {
            Some(Token::Braced(path)) => CimPath::parse(path, &Namespace::unspecified())
                .map_err(|error| self.error("a path expected").caused_by(error))?,
            _ => return Err(self.error("a path in braces expected")),
        };
        self.advance();
        let mut related = Related {
            query: AssociationQuery::of(kind, object),
            extent: RelatedExtent::Instances,
        };
        if !self.takes_word("WHERE") {
            return Ok(related);
        }
        // At least one word stands behind WHERE.
        loop {
            self.related_word(&mut related)?;
            if self.peek().is_none() {
                return Ok(related);
            }
        }
    }

    fn related_word(&mut self, related: &mut Related) -> Result<()> {
        if self.takes_word("ClassDefsOnly") {
            related.extent = RelatedExtent::Classes;
            return Ok(());
        }
        if self.takes_word("KeysOnly") {
            related.extent = RelatedExtent::Keys;
            return Ok(());
        }
        let word = self.name()?.to_ascii_lowercase();
        if !self.takes_sign("=") {
            return Err(self.error("= expected"));
        }
        let value = match self.peek() {
            Some(Token::Word(value) | Token::Text(value)) => value.clone(),
            _ => return Err(self.error("a name expected")),
        };
        let is_associators = related.query.kind == Association::Associators;
        let query = &mut related.query;
        let is_first = match word.as_str() {
            "assocclass" if is_associators => query
                .association_class
                .replace(ClassName::new(value))
                .is_none(),
            "resultclass" => query.result_class.replace(ClassName::new(value)).is_none(),
            "role" => query.role.replace(value).is_none(),
            "resultrole" if is_associators => query.result_role.replace(value).is_none(),
            _ => return Err(self.error("no such word behind WHERE")),
        };
        self.advance();
        if is_first {
            Ok(())
        } else {
            Err(self.error(&format!("{word} twice")))
        }
    }
}

fn one_or(mut all: Vec<Condition>, many: impl Fn(Vec<Condition>) -> Condition) -> Condition {
    match (all.len(), all.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            all.extend(last);
            many(all)
        }
    }
}

/// The comparison with its sides changed.
fn turned(comparison: Comparison) -> Comparison {
    match comparison {
        Comparison::Less => Comparison::Greater,
        Comparison::LessOrEqual => Comparison::GreaterOrEqual,
        Comparison::Greater => Comparison::Less,
        Comparison::GreaterOrEqual => Comparison::LessOrEqual,
        same => same,
    }
}

fn number(digits: &str) -> Option<Literal> {
    if let Some(hex) = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        return i128::from_str_radix(hex, 16).ok().map(Literal::Integer);
    }
    if let Ok(integer) = digits.parse::<i128>() {
        return Some(Literal::Integer(integer));
    }
    digits
        .parse::<f64>()
        .ok()
        .filter(|it| it.is_finite())
        .map(Literal::Real)
}
