//! One question, one answer; and asking again where that is safe.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::enumerate::{Pulling, Source};
use super::options::{ClientOptions, ClientSources};
use super::{CimClient, Enumeration};
use crate::cim::{CimInstance, CimPath, CimValue};
use crate::message::{
    Action, FaultCode, Identity, MessageId, Request, RequestBody, RequestHeader, ResourceUri,
    read_answer, read_identity, read_instance_answer, read_output, wsman_code,
};
use crate::transport::{Post, Transport};
use crate::xml::{Document, Element, decode};
use crate::{CancelToken, Error, ErrorKind, Result};

/// A [`CimClient`] over WS-Management. Cheap to clone.
#[derive(Clone)]
pub struct WsmanClient {
    transport: Arc<dyn Transport>,
    options: Arc<ClientOptions>,
    sources: ClientSources,
    cancel: CancelToken,
}

impl fmt::Debug for WsmanClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsmanClient")
            .field("address", &self.transport.address())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What a request is about.
pub(super) struct Subject<'a> {
    pub(super) resource: &'a ResourceUri,
    pub(super) selectors: &'a BTreeMap<String, CimValue>,
}

/// Whether asking twice is the same as asking once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Safe,
    OnlyIfItDidNotRun,
}

impl WsmanClient {
    /// A client that asks through `transport`.
    pub fn new(
        transport: Arc<dyn Transport>,
        options: ClientOptions,
        sources: ClientSources,
    ) -> Self {
        Self {
            transport,
            options: Arc::new(options),
            sources,
            cancel: CancelToken::new(),
        }
    }

    /// The same client, which stops when `cancel` says so.
    #[must_use]
    pub fn with_cancel(&self, cancel: CancelToken) -> Self {
        Self {
            cancel,
            ..self.clone()
        }
    }

    /// The same client with other options.
    #[must_use]
    pub fn with_options(&self, options: ClientOptions) -> Self {
        Self {
            options: Arc::new(options),
            ..self.clone()
        }
    }

    /// How it asks.
    pub fn options(&self) -> &ClientOptions {
        &self.options
    }

    pub(super) fn sources(&self) -> &ClientSources {
        &self.sources
    }

    pub(super) fn check_cancelled(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "told to stop"));
        }
        Ok(())
    }

    /// Who the host is.
    ///
    /// # Errors
    /// As the host or the line has it.
    pub fn identify(&self) -> Result<Identity> {
        let request = Request {
            header: None,
            body: RequestBody::Identify,
        };
        self.again(Repeat::Safe, || {
            self.exchange(&request, None, read_identity).map(|it| it.0)
        })
    }

    /// Sends a request and reads its answer; gives the bytes of the answer beside it.
    pub(super) fn ask<T>(
        &self,
        subject: &Subject<'_>,
        action: &Action,
        body: RequestBody,
        read: impl Fn(Option<Element<'_, '_>>) -> Result<T>,
    ) -> Result<(T, usize)> {
        let message_id = MessageId::from_bytes((self.sources.ids)());
        let request = Request {
            header: Some(RequestHeader {
                to: self.transport.address().to_owned(),
                resource: Some(subject.resource.clone()),
                action: action.to_uri(subject.resource),
                message_id: message_id.clone(),
                max_envelope_bytes: Some(self.options.max_envelope_bytes),
                timeout: Some(self.options.operation_timeout),
                locale: Some(self.options.locale.clone()),
                selectors: subject.selectors.clone(),
            }),
            body,
        };
        self.exchange(&request, Some(&message_id), read)
    }

    fn exchange<T>(
        &self,
        request: &Request,
        message_id: Option<&MessageId>,
        read: impl Fn(Option<Element<'_, '_>>) -> Result<T>,
    ) -> Result<(T, usize)> {
        self.check_cancelled()?;
        let text = request.write()?;
        let post = Post {
            body: text.as_bytes(),
            timeout: self
                .options
                .operation_timeout
                .saturating_add(self.options.grace),
            answer_max_bytes: self.options.limits.answer_max_bytes,
            cancel: &self.cancel,
        };
        let answer = self.transport.post(&post)?;
        if answer.body.len() > self.options.limits.answer_max_bytes {
            return Err(Error::limit(format!(
                "answer of {} bytes",
                answer.body.len()
            )));
        }
        let (text, _) = decode(&answer.body, answer.charset.as_deref())?;
        let document = Document::parse(&text, &self.options.limits.xml)
            .map_err(|error| error.within(format_args!("answer with status {}", answer.status)))?;
        let body = read_answer(&document, message_id)?;
        if answer.status >= 400 {
            return Err(Error::malformed(format!(
                "status {} without a fault",
                answer.status
            )));
        }
        read(body).map(|it| (it, answer.body.len()))
    }

    /// Does something, and again after a pause where that may help.
    fn again<T>(&self, repeat: Repeat, once: impl Fn() -> Result<T>) -> Result<T> {
        let mut attempt = 0;
        loop {
            let error = match once() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let may_help = match repeat {
                Repeat::Safe => matches!(error.kind(), ErrorKind::Io | ErrorKind::Busy),
                Repeat::OnlyIfItDidNotRun => did_not_run(&error),
            };
            if !may_help || attempt >= self.options.retry.attempts {
                return Err(error);
            }
            self.pause(attempt)?;
            attempt = attempt.saturating_add(1);
        }
    }

    /// Waits before the attempt of this number.
    pub(super) fn pause(&self, attempt: u32) -> Result<()> {
        (self.sources.pause)(self.options.retry.pause_before(attempt), &self.cancel);
        self.check_cancelled()
    }

    fn path_subject<T>(path: &CimPath, then: impl FnOnce(&Subject<'_>) -> T) -> T {
        let resource = ResourceUri::class(&path.namespace, &path.class);
        then(&Subject {
            resource: &resource,
            selectors: &path.keys,
        })
    }
}

/// Whether the host said that it refused before it did anything.
fn did_not_run(error: &Error) -> bool {
    error.fault().is_some_and(|fault| {
        fault.code == FaultCode::QuotaLimit
            || fault.wsman_code == Some(wsman_code::CONCURRENT_OPERATIONS_PER_USER)
    })
}

impl CimClient for WsmanClient {
    fn get(&self, path: &CimPath) -> Result<CimInstance> {
        Self::path_subject(path, |subject| {
            self.again(Repeat::Safe, || {
                let read =
                    |body: Option<Element<'_, '_>>| read_instance_answer(body, &path.namespace);
                self.ask(subject, &Action::Get, RequestBody::Get, read)
                    .map(|it| it.0)
            })
        })
        .map_err(|error| error.within(format_args!("get {}", path.to_relative_text())))
    }

    fn for_each(
        &self,
        enumeration: &Enumeration,
        each: &mut dyn FnMut(CimInstance) -> ControlFlow<()>,
    ) -> Result<()> {
        Source::of(enumeration)?
            .for_each(self, Pulling::default(), each)
            .map_err(|error| error.within(describe(enumeration)))
    }

    fn collect(&self, enumeration: &Enumeration) -> Result<Vec<CimInstance>> {
        Source::of(enumeration)?
            .collect(self)
            .map_err(|error| error.within(describe(enumeration)))
    }

    fn invoke(
        &self,
        path: &CimPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<CimInstance> {
        let action = Action::Invoke {
            method: method.to_owned(),
        };
        let body = RequestBody::Invoke {
            method: method.to_owned(),
            parameters: parameters
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        };
        Self::path_subject(path, |subject| {
            self.again(Repeat::OnlyIfItDidNotRun, || {
                let read =
                    |answer: Option<Element<'_, '_>>| read_output(answer, method, &path.namespace);
                self.ask(subject, &action, body.clone(), read)
                    .map(|it| it.0)
            })
        })
        .map_err(|error| error.within(format_args!("{}.{method}", path.class)))
    }

    fn put(&self, path: &CimPath, instance: &CimInstance) -> Result<CimInstance> {
        Self::path_subject(path, |subject| {
            self.again(Repeat::OnlyIfItDidNotRun, || {
                let read =
                    |body: Option<Element<'_, '_>>| read_instance_answer(body, &path.namespace);
                self.ask(
                    subject,
                    &Action::Put,
                    RequestBody::Put(instance.clone()),
                    read,
                )
                .map(|it| it.0)
            })
        })
        .map_err(|error| error.within(format_args!("put {}", path.to_relative_text())))
    }
}

fn describe(enumeration: &Enumeration) -> String {
    match enumeration {
        Enumeration::Class { class, .. } => format!("enumerate {class}"),
        Enumeration::Query { wql, .. } => {
            format!("query {}", wql.chars().take(200).collect::<String>())
        }
        Enumeration::Related(query) => format!("related to {}", query.object.to_relative_text()),
    }
}
