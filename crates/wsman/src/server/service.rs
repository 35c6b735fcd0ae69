//! One request, one answer.
//!
//! **Invariants.** Every path ends in an answer. Limits are the lesser of what the client takes and what the service has. A fault
//! names the machine, and says nothing of the inside but what its code says.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::enumeration::{ContextLimits, Enumeration, Enumerations};
pub use super::parameters::ParameterOrder;
use super::parameters::typed_inputs;
use super::provider::{CimProvider, Invocation, Operation};
use super::results::{Question, Row, check_keys, check_names};
use super::{Caller, Reply, SoapService};
use crate::cim::{CimInstance, CimPath, CimValue, ClassName};
use crate::message::{
    AnswerWriter, Delivery, Enumerate, EnumerationContext, Fault, FaultCode, FaultSide, Filter,
    Identity, MessageId, Request, RequestBody, RequestHeader, ResourceUri, hresult, wsman_code,
};
use crate::schema::{
    Arity, ClassSchema, Direction, MethodKind, MethodSchema, SchemaSet, ValueSchema,
};
use crate::xml::{Charset, Document, XmlLimits, decode, encode};
use crate::{Error, ErrorKind};

/// Whether each Pull gives a new context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContextIds {
    /// One for the whole enumeration.
    Kept,
    /// A new one each time.
    Renewed,
}

/// What the service is and allows; [`Default`] is what Windows has.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// What Identify answers to those who proved who they are.
    pub identity: Identity,
    /// Language of what it says.
    pub language: String,
    /// Longest request and longest answer (`MaxEnvelopeSizekb`).
    pub max_envelope_bytes: u32,
    /// Most items of one answer (`MaxBatchItems`).
    pub max_batch_items: u32,
    /// How long an enumeration stays while nobody pulls (`EnumerationTimeoutms`).
    pub enumeration_idle: Duration,
    /// Longest time that an operation may ask for (`MaxTimeoutms`).
    pub max_timeout: Duration,
    /// Most enumerations of one caller (`MaxConcurrentOperationsPerUser`).
    pub contexts_per_caller: usize,
    /// Most enumerations altogether.
    pub contexts_altogether: usize,
    /// Whether parameters must be in order.
    pub parameter_order: ParameterOrder,
    /// Whether contexts change.
    pub context_ids: ContextIds,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            identity: Identity {
                protocol_version: PROTOCOL.to_owned(),
                product_vendor: "Microsoft Corporation".to_owned(),
                product_version: "OS: 10.0.17763 SP: 0.0 Stack: 3.0".to_owned(),
            },
            language: "en-US".to_owned(),
            max_envelope_bytes: 500 * 1024,
            max_batch_items: 32_000,
            enumeration_idle: Duration::from_secs(60),
            max_timeout: Duration::from_secs(60),
            contexts_per_caller: 1500,
            contexts_altogether: 10_000,
            parameter_order: ParameterOrder::AsDeclared,
            context_ids: ContextIds::Kept,
        }
    }
}

const PROTOCOL: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd";
const FAULT_ACTION: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman/fault";
const ADDRESSING_FAULT_ACTION: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing/fault";

/// Where time and ids come from.
#[derive(Clone)]
pub struct ServiceSources {
    /// Time since some moment; never goes back.
    pub clock: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// 16 bytes that did not come before and cannot be guessed.
    pub ids: Arc<dyn Fn() -> [u8; 16] + Send + Sync>,
}

impl fmt::Debug for ServiceSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceSources").finish_non_exhaustive()
    }
}

/// Answers requests about what a provider shows.
pub struct WsmanService {
    provider: Arc<dyn CimProvider>,
    options: ServiceOptions,
    sources: ServiceSources,
    enumerations: Enumerations,
}

impl fmt::Debug for WsmanService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsmanService")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What an answer is made with.
struct Turn<'a> {
    caller: &'a Caller,
    header: &'a RequestHeader,
    resource: &'a ResourceUri,
    action: &'a str,
    max_bytes: usize,
}

type Answered = Result<String, Fault>;

impl SoapService for WsmanService {
    fn serve(&self, caller: &Caller, charset: Option<&str>, request: &[u8]) -> Reply {
        let mut asked = None;
        let mut encoding = Charset::Utf8;
        let answered = self.answer(caller, charset, request, &mut asked, &mut encoding);
        let (status, text) = match answered {
            Ok(text) => (200, text),
            Err(fault) => (fault.http_status(), self.fault_text(fault, asked.as_ref())),
        };
        Reply {
            status,
            content_type: format!("application/soap+xml;charset={}", encoding.as_str()),
            body: encode(text, encoding),
        }
    }
}

impl WsmanService {
    /// A service that shows what `provider` has.
    pub fn new(
        provider: Arc<dyn CimProvider>,
        options: ServiceOptions,
        sources: ServiceSources,
    ) -> Self {
        Self {
            provider,
            options,
            sources,
            enumerations: Enumerations::default(),
        }
    }

    fn message_id(&self) -> MessageId {
        MessageId::from_bytes((self.sources.ids)())
    }

    fn fault_text(&self, mut fault: Fault, asked: Option<&MessageId>) -> String {
        fault.machine = Some(self.provider.server_name().to_owned());
        let action = match fault.code {
            FaultCode::DestinationUnreachable
            | FaultCode::ActionNotSupported
            | FaultCode::InvalidMessageInformationHeader
            | FaultCode::MessageInformationHeaderRequired
            | FaultCode::EndpointUnavailable => ADDRESSING_FAULT_ACTION,
            _ => FAULT_ACTION,
        };
        let language = &self.options.language;
        let written = |fault: &Fault| {
            let mut out = AnswerWriter::new(action, &self.message_id(), asked, language);
            out.fault(fault, language);
            out.finish()
        };
        // A reason may repeat what came in, characters that cannot be sent among it: then the code alone must do.
        written(&fault)
            .or_else(|_| {
                let bare = Fault::new(fault.code);
                let mut out = AnswerWriter::new(action, &self.message_id(), None, "en-US");
                out.fault(&bare, "en-US");
                out.finish()
            })
            .unwrap_or_default()
    }

    fn answer(
        &self,
        caller: &Caller,
        charset: Option<&str>,
        request: &[u8],
        asked: &mut Option<MessageId>,
        encoding: &mut Charset,
    ) -> Answered {
        let most = usize::try_from(self.options.max_envelope_bytes).unwrap_or(usize::MAX);
        if request.len() > most {
            return Err(Fault::new(FaultCode::EncodingLimit)
                .with_wsman_code(wsman_code::ENVELOPE_TOO_LARGE));
        }
        let (text, used) = decode(request, charset).map_err(malformed)?;
        *encoding = used;
        let limits = XmlLimits {
            elements: 100_000,
            ..XmlLimits::default()
        };
        let document = Document::parse(&text, &limits).map_err(malformed)?;
        *asked = message_id_of(&document);
        let request = Request::read(&document)?;
        let Some((header, resource)) = request
            .header
            .as_ref()
            .and_then(|it| it.resource.as_ref().map(|resource| (it, resource)))
        else {
            return self.identify(caller);
        };
        if *caller == Caller::Anonymous {
            return Err(Fault::new(FaultCode::AccessDenied));
        }
        let turn = Turn {
            caller,
            header,
            resource,
            action: &header.action,
            max_bytes: usize::try_from(header.max_envelope_bytes.unwrap_or(u32::MAX))
                .map_or(most, |it| it.min(most)),
        };
        let began = (self.sources.clock)();
        let answered = self.dispatch(&turn, &request)?;
        let allowed = header
            .timeout
            .unwrap_or(self.options.max_timeout)
            .min(self.options.max_timeout);
        if (self.sources.clock)().saturating_sub(began) > allowed {
            return Err(Fault::new(FaultCode::TimedOut));
        }
        if answered.len() > turn.max_bytes {
            return Err(too_large());
        }
        Ok(answered)
    }

    fn dispatch(&self, turn: &Turn<'_>, request: &Request) -> Answered {
        match &request.body {
            RequestBody::Identify => self.identify(turn.caller),
            RequestBody::Enumerate(enumerate) => self.enumerate(turn, enumerate),
            RequestBody::Pull {
                context,
                max_elements,
            } => self.pull(turn, context, *max_elements),
            RequestBody::Release { context } => self.release(turn, context),
            RequestBody::Get => self.get(turn, &path(request)?),
            RequestBody::Put(instance) => self.put(turn, &path(request)?, instance),
            RequestBody::Invoke { method, parameters } => {
                self.invoke(turn, &path(request)?, method, parameters)
            }
            RequestBody::Unsupported => Err(Fault::new(FaultCode::ActionNotSupported)),
        }
    }

    fn identify(&self, caller: &Caller) -> Answered {
        let mut identity = self.options.identity.clone();
        if *caller == Caller::Anonymous {
            identity.product_version = "OS: 0.0.0 SP: 0.0 Stack: 3.0".to_owned();
        }
        AnswerWriter::identity(&identity).map_err(broken)
    }

    fn writer(&self, turn: &Turn<'_>) -> AnswerWriter {
        let language = turn
            .header
            .locale
            .as_deref()
            .unwrap_or(&self.options.language);
        AnswerWriter::new(
            &format!("{}Response", turn.action),
            &self.message_id(),
            Some(&turn.header.message_id),
            language,
        )
    }

    fn limits(&self) -> ContextLimits {
        ContextLimits {
            per_caller: self.options.contexts_per_caller,
            altogether: self.options.contexts_altogether,
            idle: self.options.enumeration_idle,
        }
    }

    fn new_context(&self) -> EnumerationContext {
        EnumerationContext::from_bytes((self.sources.ids)())
    }

    fn enumerate(&self, turn: &Turn<'_>, enumerate: &Enumerate) -> Answered {
        let operation = Operation::Enumerate {
            namespace: &turn.resource.namespace,
            query: match &enumerate.filter {
                Some(Filter::Wql(query)) => Some(query),
                _ => None,
            },
            association: match &enumerate.filter {
                Some(Filter::Association(query)) => Some(query),
                _ => None,
            },
        };
        self.provider.admit(&operation, turn.caller)?;
        let question = Question {
            provider: self.provider.as_ref(),
            caller: turn.caller,
            resource: turn.resource,
            selectors: &turn.header.selectors,
        };
        let mut rows = VecDeque::from(question.rows(enumerate)?);
        let mut out = self.writer(turn);
        out.raw("<n:EnumerateResponse>");
        let mut items = AnswerItems::default();
        if enumerate.delivery == Delivery::Optimized {
            items = self.items(turn, &mut rows, enumerate.max_elements, out.len())?;
        }
        if rows.is_empty() && enumerate.delivery == Delivery::Optimized {
            out.raw("<n:EnumerationContext/>");
        } else {
            out.context(&self.keep(turn, self.new_context(), rows)?);
        }
        if enumerate.delivery == Delivery::Optimized {
            items.write(&mut out, "w");
        }
        out.raw("</n:EnumerateResponse>");
        out.finish().map_err(broken)
    }

    fn pull(
        &self,
        turn: &Turn<'_>,
        context: &EnumerationContext,
        max_elements: Option<u32>,
    ) -> Answered {
        self.provider.admit(&Operation::Pull, turn.caller)?;
        let now = (self.sources.clock)();
        let mut enumeration = self
            .enumerations
            .take(context, turn.caller, now, self.limits())
            .ok_or_else(|| Fault::new(FaultCode::InvalidEnumerationContext))?;
        let mut out = self.writer(turn);
        out.raw("<n:PullResponse>");
        let items = self.items(turn, &mut enumeration.rows, max_elements, out.len())?;
        if !items.is_last {
            let next = match self.options.context_ids {
                ContextIds::Kept => context.clone(),
                ContextIds::Renewed => self.new_context(),
            };
            out.context(&self.keep(turn, next, enumeration.rows)?);
        }
        items.write(&mut out, "n");
        out.raw("</n:PullResponse>");
        out.finish().map_err(broken)
    }

    fn release(&self, turn: &Turn<'_>, context: &EnumerationContext) -> Answered {
        self.provider.admit(&Operation::Release, turn.caller)?;
        let now = (self.sources.clock)();
        self.enumerations
            .take(context, turn.caller, now, self.limits())
            .ok_or_else(|| Fault::new(FaultCode::InvalidEnumerationContext))?;
        self.writer(turn).finish().map_err(broken)
    }

    fn keep(
        &self,
        turn: &Turn<'_>,
        context: EnumerationContext,
        rows: VecDeque<Row>,
    ) -> Result<EnumerationContext, Fault> {
        let enumeration = Enumeration {
            rows,
            caller: turn.caller.clone(),
            used_at: (self.sources.clock)(),
        };
        if self
            .enumerations
            .keep(context.clone(), enumeration, self.limits())
        {
            return Ok(context);
        }
        // As a real host says it: by side and subcode it is an internal error, by number a quota.
        Err(Fault::new(FaultCode::InternalError)
            .on_side(FaultSide::Receiver)
            .with_wsman_code(wsman_code::CONCURRENT_OPERATIONS_PER_USER)
            .because(
                "The maximum number of concurrent operations for this user has been exceeded.",
            ))
    }

    /// Takes rows off the front and writes them, as many as are wanted and fit.
    fn items(
        &self,
        turn: &Turn<'_>,
        rows: &mut VecDeque<Row>,
        max_elements: Option<u32>,
        used_bytes: usize,
    ) -> Result<AnswerItems, Fault> {
        let most = max_elements.unwrap_or(1).min(self.options.max_batch_items);
        let mut items = AnswerItems::default();
        let mut class_uri = ClassUri::default();
        for _ in 0..most {
            let Some(row) = rows.front() else {
                break;
            };
            let mark = items.out.mark();
            write_row(&mut items.out, row, turn.resource, &mut class_uri).map_err(broken)?;
            if items.out.len().saturating_add(used_bytes) > turn.max_bytes {
                items.out.take_back(mark);
                if items.count == 0 {
                    return Err(too_large());
                }
                break;
            }
            items.count = items.count.saturating_add(1);
            rows.pop_front();
        }
        items.is_last = rows.is_empty();
        Ok(items)
    }

    fn schemas(&self, path: &CimPath) -> Result<Arc<SchemaSet>, Fault> {
        self.provider.schema(&path.namespace).ok_or_else(|| {
            Fault::new(FaultCode::DestinationUnreachable)
                .with_hresult(hresult::INVALID_NAMESPACE, "Invalid namespace")
        })
    }

    fn class<'s>(&self, schemas: &'s SchemaSet, path: &CimPath) -> Result<&'s ClassSchema, Fault> {
        schemas.class(&path.class).ok_or_else(|| {
            Fault::new(FaultCode::DestinationUnreachable)
                .with_wsman_code(wsman_code::INVALID_RESOURCE_URI)
                .with_hresult(hresult::INVALID_CLASS, "Invalid class")
        })
    }

    fn get(&self, turn: &Turn<'_>, path: &CimPath) -> Answered {
        self.provider.admit(&Operation::Get(path), turn.caller)?;
        let schemas = self.schemas(path)?;
        check_keys(path, self.class(&schemas, path)?)?;
        let instance = self.provider.get(path, turn.caller)?;
        self.instance_answer(turn, &schemas, &instance)
    }

    fn put(&self, turn: &Turn<'_>, path: &CimPath, instance: &CimInstance) -> Answered {
        self.provider.admit(&Operation::Put(path), turn.caller)?;
        let schemas = self.schemas(path)?;
        let schema = self.class(&schemas, path)?;
        check_keys(path, schema)?;
        if instance.class != schema.name {
            return Err(Fault::new(FaultCode::SchemaValidationError));
        }
        let changed = self.provider.put(path, instance, turn.caller)?;
        self.instance_answer(turn, &schemas, &changed)
    }

    fn instance_answer(
        &self,
        turn: &Turn<'_>,
        schemas: &SchemaSet,
        instance: &CimInstance,
    ) -> Answered {
        let uri = turn.resource.for_class(&instance.class).to_string();
        let mut out = self.writer(turn);
        out.instance(instance, &uri, schemas.class(&instance.class))
            .map_err(broken)?;
        out.finish().map_err(broken)
    }

    fn invoke(
        &self,
        turn: &Turn<'_>,
        path: &CimPath,
        method: &str,
        parameters: &[(String, CimValue)],
    ) -> Answered {
        self.provider
            .admit(&Operation::Invoke { path, method }, turn.caller)?;
        let schemas = self.schemas(path)?;
        let class = self.class(&schemas, path)?;
        let schema = class.methods.get(method).ok_or_else(|| {
            Fault::new(FaultCode::ActionNotSupported)
                .because(format_args!("{} has no {method:.60}.", class.name))
        })?;
        check_names(path, class)?;
        if schema.kind == MethodKind::Instance && path.keys.is_empty() && !class.keys.is_empty() {
            return Err(Fault::new(FaultCode::InternalError).with_hresult(
                hresult::INVALID_METHOD_PARAMETERS,
                "Invalid method Parameter(s)",
            ));
        }
        let inputs = typed_inputs(schema, parameters, self.options.parameter_order)?;
        let output = self.provider.invoke(&Invocation {
            path,
            method: schema,
            inputs: &inputs,
            caller: turn.caller,
        })?;
        let mut out = self.writer(turn);
        out.output(
            method,
            &turn.resource.to_string(),
            &output,
            Some(&output_schema(schema)),
        )
        .map_err(broken)?;
        out.finish().map_err(broken)
    }
}

/// Items of one answer, before it is known what stands before them.
struct AnswerItems {
    out: AnswerWriter,
    count: usize,
    is_last: bool,
}

impl Default for AnswerItems {
    fn default() -> Self {
        Self {
            out: AnswerWriter::fragmentary(),
            count: 0,
            is_last: false,
        }
    }
}

impl AnswerItems {
    fn write(self, out: &mut AnswerWriter, prefix: &str) {
        if self.count == 0 {
            out.raw(&format!("<{prefix}:Items/>"));
        } else {
            out.raw(&format!("<{prefix}:Items>"));
            out.append(self.out);
            out.raw(&format!("</{prefix}:Items>"));
        }
        if self.is_last {
            out.raw(&format!("<{prefix}:EndOfSequence/>"));
        }
    }
}

/// The URI of the class that was written last: rows of one class come in a row, and it is made once.
#[derive(Default)]
struct ClassUri {
    class: Option<ClassName>,
    uri: String,
}

impl ClassUri {
    fn of(&mut self, resource: &ResourceUri, class: &ClassName) -> &str {
        if self.class.as_ref() != Some(class) {
            self.class = Some(class.clone());
            self.uri = resource.for_class(class).to_string();
        }
        &self.uri
    }
}

fn write_row(
    out: &mut AnswerWriter,
    row: &Row,
    resource: &ResourceUri,
    uri: &mut ClassUri,
) -> crate::Result<()> {
    match row {
        Row::Object(schemas, instance) => {
            let schema = known(schemas, instance)?;
            out.instance(instance, uri.of(resource, &instance.class), Some(schema))
        }
        Row::Reference(path) => {
            out.reference(path);
            Ok(())
        }
        Row::Both(schemas, instance, path) => {
            let schema = known(schemas, instance)?;
            out.both(
                instance,
                uri.of(resource, &instance.class),
                Some(schema),
                path,
            )
        }
        Row::Fragment(instance) => out.fragment(instance),
    }
}

fn known<'s>(schemas: &'s SchemaSet, instance: &CimInstance) -> crate::Result<&'s ClassSchema> {
    schemas
        .class(&instance.class)
        .ok_or_else(|| Error::invalid(format!("no class {}", instance.class)))
}

/// The outputs of a method, as if they were the properties of a class.
fn output_schema(method: &MethodSchema) -> ClassSchema {
    let mut schema = ClassSchema::new(format!("{}_OUTPUT", method.name).as_str());
    for parameter in &method.parameters {
        if parameter.direction != Direction::In {
            schema
                .properties
                .insert(parameter.name.clone(), parameter.value.clone());
        }
    }
    if let Some(cim_type) = method.returns {
        schema.properties.insert(
            "ReturnValue".to_owned(),
            ValueSchema {
                cim_type,
                arity: Arity::One,
                embedded: None,
            },
        );
    }
    schema
}

fn path(request: &Request) -> Result<CimPath, Fault> {
    request.path().ok_or_else(|| {
        Fault::new(FaultCode::DestinationUnreachable)
            .with_wsman_code(wsman_code::INVALID_RESOURCE_URI)
    })
}

fn too_large() -> Fault {
    Fault::new(FaultCode::EncodingLimit)
        .with_wsman_code(wsman_code::MAX_ENVELOPE_SIZE_EXCEEDED)
        .with_detail("MaxEnvelopeSizeExceeded")
}

/// What came in is no message.
fn malformed(error: Error) -> Fault {
    match error.kind() {
        ErrorKind::Limit => Fault::new(FaultCode::EncodingLimit).because(error),
        _ => Fault::new(FaultCode::SchemaValidationError).because(error),
    }
}

/// The provider gave what cannot be sent.
fn broken(error: Error) -> Fault {
    Fault::new(FaultCode::InternalError).because(error)
}

/// The id of a message, for answers to those that cannot be understood further.
fn message_id_of(document: &Document<'_>) -> Option<MessageId> {
    use crate::xml::namespace;
    document
        .root()
        .child(namespace::SOAP, "Header")?
        .child(namespace::ADDRESSING, "MessageID")
        .map(|it| MessageId::new(it.trimmed().chars().take(256).collect::<String>()))
}
