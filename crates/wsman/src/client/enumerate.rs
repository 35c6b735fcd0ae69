//! Enumerations, pulled to their end.
//!
//! ```text
//!   Enumerate ─► batch ─► Pull ─► batch ─► … ─► EndOfSequence
//!      │            ├── context lapsed, line broke: from the start, if nothing was handed out
//!      │            └── does not fit: from the start with fewer items at a time, under the same condition
//!      └── filter refused: all of the class, filtered here
//! ```
//!
//! **Invariant.** Every loop is bounded by [`ClientLimits`](super::ClientLimits) and [`RetryOptions`](super::RetryOptions).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use super::wsman::{Subject, WsmanClient};
use super::{CimClient, Enumeration};
use crate::cim::{CimInstance, CimPath, CimValue, ClassName, Namespace};
use crate::message::{
    Action, Association, AssociationQuery, Batch, Delivery, Enumerate, EnumerationContext,
    FaultCode, Filter, Item, Items, Polymorphism, RequestBody, ResourceUri, read_batch,
};
use crate::wql::{Literal, Query, Scope, Select, quote};
use crate::{Error, ErrorKind, Result};

/// Items per answer are not asked for below this.
const ELEMENTS_LEAST: u32 = 1;
/// A Pull that timed out is asked again this often: the context is still good then.
const TIMED_OUT_PULLS_MAX: u32 = 5;

/// What is asked of the host for an [`Enumeration`].
pub(super) struct Source {
    resource: ResourceUri,
    /// The query, for a host that takes it.
    wql: Option<String>,
    /// What to do where the host refuses it.
    otherwise: Otherwise,
    /// The class of items that do not say theirs.
    from: Option<ClassName>,
}

enum Otherwise {
    /// The refusal is the answer.
    Fail,
    /// All of the class, filtered here.
    Filter(Select),
    /// The associations of a class, and what is at their other end.
    Walk(AssociationQuery),
}

/// How far an enumeration is.
#[derive(Default)]
pub(super) struct Pulling {
    handed_out: usize,
    bytes: usize,
}

type Each<'e> = &'e mut dyn FnMut(CimInstance) -> ControlFlow<()>;

impl Source {
    pub(super) fn of(enumeration: &Enumeration) -> Result<Self> {
        match enumeration {
            Enumeration::Class { namespace, class } => Ok(Self::class(namespace, class)),
            Enumeration::Query { namespace, wql } => {
                let (otherwise, from) = match Query::parse(wql) {
                    Ok(Query::Select(select)) if !names_server(&select) => {
                        let class = select.class.clone();
                        (Otherwise::Filter(select), Some(class))
                    }
                    Ok(Query::Select(select)) => (Otherwise::Fail, Some(select.class)),
                    Ok(Query::Related(_)) => (Otherwise::Fail, None),
                    Err(error) => {
                        return Err(
                            Error::new(ErrorKind::Invalid, error.to_string()).caused_by(error)
                        );
                    }
                };
                Ok(Self {
                    resource: ResourceUri::all(namespace),
                    wql: Some(wql.clone()),
                    otherwise,
                    from,
                })
            }
            Enumeration::Related(query) => Ok(Self {
                resource: ResourceUri::all(&query.object.namespace),
                wql: Some(related_wql(query)),
                otherwise: match association_class(query) {
                    Some(_) => Otherwise::Walk(query.clone()),
                    None => Otherwise::Fail,
                },
                from: query.result_class.clone(),
            }),
        }
    }

    fn class(namespace: &Namespace, class: &ClassName) -> Self {
        Self {
            resource: ResourceUri::class(namespace, class),
            wql: None,
            otherwise: Otherwise::Fail,
            from: Some(class.clone()),
        }
    }

    pub(super) fn collect(&self, client: &WsmanClient) -> Result<Vec<CimInstance>> {
        let mut attempt = 0;
        loop {
            let mut all = Vec::new();
            // Nothing leaves this function before the end, so it may begin again at any time.
            let collected = self.for_each(client, Pulling::default(), &mut |instance| {
                all.push(instance);
                ControlFlow::Continue(())
            });
            match collected {
                Ok(()) => return Ok(all),
                Err(error)
                    if !begins_again(&error) || attempt >= client.options().retry.attempts =>
                {
                    return Err(error);
                }
                Err(_) => client.pause(attempt)?,
            }
            attempt = attempt.saturating_add(1);
        }
    }

    /// Hands out what the host gives; goes round a refused filter.
    pub(super) fn for_each(
        &self,
        client: &WsmanClient,
        mut state: Pulling,
        each: Each<'_>,
    ) -> Result<()> {
        let refused = match self.pull_all(client, &mut state, each) {
            Err(error) if is_refused(&error) && state.handed_out == 0 => error,
            done => return done,
        };
        match &self.otherwise {
            Otherwise::Fail => Err(refused),
            Otherwise::Filter(select) => {
                let scope = Scope {
                    server: "",
                    // The host gives the class and what inherits from it, nothing else.
                    is_a: &|_, _| true,
                };
                let plain = Self::class(&self.resource.namespace, &select.class);
                plain.pull_all(client, &mut state, &mut |instance| {
                    if select.matches(&instance, &scope) {
                        each(select.project(instance))
                    } else {
                        ControlFlow::Continue(())
                    }
                })
            }
            Otherwise::Walk(query) => self.walk(client, query, &mut state, each),
        }
    }

    /// Asks for all associations of a class, and then for what is at the other end of those that name the object.
    fn walk(
        &self,
        client: &WsmanClient,
        query: &AssociationQuery,
        state: &mut Pulling,
        each: Each<'_>,
    ) -> Result<()> {
        let Some(class) = association_class(query) else {
            return Err(Error::invalid("associations of no class"));
        };
        let mut ends: Vec<CimPath> = Vec::new();
        let wanted = query.object.id();
        Self::class(&query.object.namespace, class).pull_all(
            client,
            state,
            &mut |association| {
                let mine = association.properties.iter().find(|(role, value)| {
                    matches!(value, CimValue::Reference(path) if path.id() == wanted)
                        && query
                            .role
                            .as_ref()
                            .is_none_or(|it| it.eq_ignore_ascii_case(role))
                });
                let Some((mine, _)) = mine else {
                    return ControlFlow::Continue(());
                };
                if query.kind == Association::References {
                    return each(association);
                }
                for (role, value) in &association.properties {
                    if let CimValue::Reference(path) = value
                        && role != mine
                        && query
                            .result_role
                            .as_ref()
                            .is_none_or(|it| it.eq_ignore_ascii_case(role))
                        && query
                            .result_class
                            .as_ref()
                            .is_none_or(|it| *it == path.class)
                    {
                        ends.push((**path).clone());
                    }
                }
                ControlFlow::Continue(())
            },
        )?;
        for end in ends {
            match client.get(&end) {
                Ok(instance) => {
                    if each(instance).is_break() {
                        return Ok(());
                    }
                }
                // Gone since the association was read.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Pulls to the end; begins again as long as nothing was handed out.
    fn pull_all(&self, client: &WsmanClient, state: &mut Pulling, each: Each<'_>) -> Result<()> {
        let mut elements = client.options().max_elements.max(ELEMENTS_LEAST);
        let mut attempt = 0;
        loop {
            let error = match self.pull_once(client, elements, state, each) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if state.handed_out > 0 {
                return Err(error);
            }
            let is_too_large = error
                .fault()
                .is_some_and(|it| it.code == FaultCode::EncodingLimit);
            if is_too_large && elements > ELEMENTS_LEAST {
                elements = (elements / 4).max(ELEMENTS_LEAST);
                continue;
            }
            if !begins_again(&error) || attempt >= client.options().retry.attempts {
                return Err(error);
            }
            client.pause(attempt)?;
            attempt = attempt.saturating_add(1);
        }
    }

    fn pull_once(
        &self,
        client: &WsmanClient,
        elements: u32,
        state: &mut Pulling,
        each: Each<'_>,
    ) -> Result<()> {
        let deadline =
            (client.sources().clock)().saturating_add(client.options().limits.enumeration_timeout);
        let mut body = RequestBody::Enumerate(Enumerate {
            filter: self.wql.clone().map(Filter::Wql),
            items: Items::Objects,
            delivery: Delivery::Optimized,
            max_elements: Some(elements),
            polymorphism: Polymorphism::Include,
        });
        let mut action = Action::Enumerate;
        let mut context: Option<EnumerationContext> = None;
        let mut empty = 0_usize;
        loop {
            let batch = self.batch(client, &action, body, state)?;
            let is_empty = batch.items.is_empty();
            if self.hand_out(client, batch.items, state, each)?.is_break() {
                if let (false, Some(context)) = (batch.is_last, batch.context.or(context)) {
                    self.release(client, context);
                }
                return Ok(());
            }
            if batch.is_last {
                return Ok(());
            }
            // The first answer to an Enumerate may bring nothing but the context.
            let is_first = action == Action::Enumerate;
            empty = if is_empty && !is_first {
                empty.saturating_add(1)
            } else {
                0
            };
            let next = batch.context.or(context).ok_or_else(|| {
                Error::malformed("an enumeration that neither ends nor can go on")
            })?;
            self.check_bounds(client, empty, deadline)?;
            body = RequestBody::Pull {
                context: next.clone(),
                max_elements: Some(elements),
            };
            action = Action::Pull;
            context = Some(next);
        }
    }

    fn check_bounds(&self, client: &WsmanClient, empty: usize, deadline: Duration) -> Result<()> {
        let limits = &client.options().limits;
        if empty > limits.empty_pulls_max {
            return Err(Error::limit(format!(
                "{empty} answers in a row bring nothing and no end"
            )));
        }
        if (client.sources().clock)() > deadline {
            return Err(Error::limit(format!(
                "enumeration is not at its end after {} s",
                limits.enumeration_timeout.as_secs()
            )));
        }
        client.check_cancelled()
    }

    fn subject<T>(&self, then: impl FnOnce(&Subject<'_>) -> T) -> T {
        then(&Subject {
            resource: &self.resource,
            selectors: &BTreeMap::new(),
        })
    }

    /// One answer of the enumeration. A Pull that timed out leaves its context good, and is asked again.
    fn batch(
        &self,
        client: &WsmanClient,
        action: &Action,
        body: RequestBody,
        state: &mut Pulling,
    ) -> Result<Batch> {
        let read = |answer: Option<crate::xml::Element<'_, '_>>| {
            read_batch(answer, &self.resource.namespace, self.from.as_ref())
        };
        let mut timed_out = 0;
        loop {
            let answered = self.subject(|subject| client.ask(subject, action, body.clone(), read));
            match answered {
                Ok((batch, bytes)) => {
                    state.bytes = state.bytes.saturating_add(bytes);
                    let most = client.options().limits.enumeration_max_bytes;
                    if state.bytes > most {
                        return Err(Error::limit(format!(
                            "enumeration of more than {most} bytes"
                        )));
                    }
                    return Ok(batch);
                }
                Err(error)
                    if *action == Action::Pull
                        && timed_out < TIMED_OUT_PULLS_MAX
                        && error
                            .fault()
                            .is_some_and(|it| it.code == FaultCode::TimedOut) =>
                {
                    client.pause(timed_out)?;
                    timed_out = timed_out.saturating_add(1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn hand_out(
        &self,
        client: &WsmanClient,
        items: Vec<Item>,
        state: &mut Pulling,
        each: Each<'_>,
    ) -> Result<ControlFlow<()>> {
        let most = client.options().limits.items_max;
        for item in items {
            let instance = match item {
                Item::Object(instance) | Item::Both(instance, _) | Item::Fragment(instance) => {
                    instance
                }
                Item::Reference(path) => {
                    return Err(Error::malformed(format!(
                        "a reference to {} where an object is expected",
                        path.class
                    )));
                }
            };
            if state.handed_out >= most {
                return Err(Error::limit(format!(
                    "enumeration of more than {most} items"
                )));
            }
            state.handed_out = state.handed_out.saturating_add(1);
            if each(instance).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Ends an enumeration early. That it did not work is nothing to the caller: the host ends it after a while.
    fn release(&self, client: &WsmanClient, context: EnumerationContext) {
        let released = self.subject(|subject| {
            client.ask(
                subject,
                &Action::Release,
                RequestBody::Release { context },
                |_| Ok(()),
            )
        });
        drop(released);
    }
}

/// Whether an enumeration may begin again after this.
fn begins_again(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Busy)
        || error
            .fault()
            .is_some_and(|it| it.code == FaultCode::InvalidEnumerationContext)
}

/// Whether the host refused the filter: bad query, unknown class, missing namespace, or no WQL here at all.
fn is_refused(error: &Error) -> bool {
    error.fault().is_some_and(|it| {
        matches!(
            it.code,
            FaultCode::CannotProcessFilter
                | FaultCode::FilteringNotSupported
                | FaultCode::FilterDialectRequestedUnavailable
        )
    })
}

/// Whether a query asks for the name of the host, which is not known here.
fn names_server(select: &Select) -> bool {
    use crate::wql::Condition;
    let mut pending: Vec<&Condition> = select.condition.iter().collect();
    while let Some(condition) = pending.pop() {
        match condition {
            Condition::All(inner) | Condition::Any(inner) => pending.extend(inner),
            Condition::Not(inner) => pending.push(inner),
            Condition::Compare(name, _, literal) => {
                if *literal == Literal::Server || name.name.starts_with("__") {
                    return true;
                }
            }
            Condition::IsA(..) => return true,
            Condition::Like(..) | Condition::IsNull(_) => {}
        }
    }
    false
}

/// The association that a query goes through, where it names one.
fn association_class(query: &AssociationQuery) -> Option<&ClassName> {
    match query.kind {
        Association::Associators => query.association_class.as_ref(),
        Association::References => query
            .association_class
            .as_ref()
            .or(query.result_class.as_ref()),
    }
}

/// A query for what is related, in WQL.
fn related_wql(query: &AssociationQuery) -> String {
    let verb = match query.kind {
        Association::Associators => "ASSOCIATORS",
        Association::References => "REFERENCES",
    };
    let mut keys = String::new();
    for (count, (name, value)) in query.object.keys.iter().enumerate() {
        keys.push(if count == 0 { '.' } else { ',' });
        keys.push_str(name);
        keys.push('=');
        match value {
            CimValue::Reference(path) => keys.push_str(&quote(&path.to_text(None))),
            CimValue::Uint(_) | CimValue::Sint(_) | CimValue::Boolean(_) => {
                keys.push_str(&value.to_wire_text().unwrap_or_default());
            }
            value => keys.push_str(&quote(&value.to_wire_text().unwrap_or_default())),
        }
    }
    let mut text = format!("{verb} OF {{{}{keys}}}", query.object.class);
    let through = association_class(query).map(ClassName::as_str);
    let words = match query.kind {
        Association::Associators => [
            ("AssocClass", through),
            (
                "ResultClass",
                query.result_class.as_ref().map(ClassName::as_str),
            ),
            ("Role", query.role.as_deref()),
            ("ResultRole", query.result_role.as_deref()),
        ],
        // There the result is the association.
        Association::References => [
            ("ResultClass", through),
            ("Role", query.role.as_deref()),
            ("", None),
            ("", None),
        ],
    };
    let words: Vec<String> = words
        .into_iter()
        .filter_map(|(word, value)| Some(format!("{word} = {}", value?)))
        .collect();
    if !words.is_empty() {
        text.push_str(" WHERE ");
        text.push_str(&words.join(" "));
    }
    text
}
