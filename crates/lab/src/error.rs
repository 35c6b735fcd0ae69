//! The error of the estate: what Windows would answer, and where it happened.
//!
//! A call that Windows answers with a `ReturnValue` carries a [`ReturnCode`]; one that it answers with a fault carries an
//! [`HResult`] or a [`Win32Error`]. Codes are those of the documentation of `root/virtualization/v2` and of the SDK.

use std::error::Error as StdError;
use std::fmt;

/// Result of the estate.
pub type Result<T> = std::result::Result<T, Error>;

/// `ReturnValue` of a method of `root/virtualization/v2`, other than 0 (done) and 4096 (a job was started).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReturnCode {
    /// 32768.
    Failed,
    /// 32769.
    AccessDenied,
    /// 32770.
    NotSupported,
    /// 32771.
    StatusUnknown,
    /// 32772.
    Timeout,
    /// 32773.
    InvalidParameter,
    /// 32774.
    SystemInUse,
    /// 32775.
    InvalidState,
    /// 32776.
    IncorrectDataType,
    /// 32777.
    SystemNotAvailable,
    /// 32778.
    OutOfMemory,
    /// 32779: not found, or in use for some methods.
    FileNotFound,
    /// 32781: of the shutdown component, the guest is locked.
    MachineLocked,
}

impl ReturnCode {
    /// The number on the wire.
    pub fn value(self) -> u32 {
        match self {
            Self::Failed => 32768,
            Self::AccessDenied => 32769,
            Self::NotSupported => 32770,
            Self::StatusUnknown => 32771,
            Self::Timeout => 32772,
            Self::InvalidParameter => 32773,
            Self::SystemInUse => 32774,
            Self::InvalidState => 32775,
            Self::IncorrectDataType => 32776,
            Self::SystemNotAvailable => 32777,
            Self::OutOfMemory => 32778,
            Self::FileNotFound => 32779,
            Self::MachineLocked => 32781,
        }
    }
}

/// An `HRESULT` of WMI or of a provider, as faults carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HResult(pub u32);

impl HResult {
    /// `WBEM_E_FAILED`: removing a drive that still holds a medium.
    pub const FAILED: Self = Self(0x8004_1001);
    /// `WBEM_E_NOT_FOUND`.
    pub const NOT_FOUND: Self = Self(0x8004_1002);
    /// `WBEM_E_INVALID_PARAMETER`.
    pub const INVALID_PARAMETER: Self = Self(0x8004_1008);
    /// `HRESULT_FROM_WIN32(ERROR_LOGON_TYPE_NOT_GRANTED)`: KB 2779204.
    pub const LOGON_TYPE_NOT_GRANTED: Self = Self(0x8007_052F);
    /// `HRESULT_FROM_WIN32(ERROR_DISK_FULL)`.
    pub const DISK_FULL: Self = Self(0x8007_0070);
    /// `HRESULT_FROM_WIN32(ERROR_FILE_NOT_FOUND)`.
    pub const FILE_NOT_FOUND: Self = Self(0x8007_0002);
    /// `HRESULT_FROM_WIN32(ERROR_SHARING_VIOLATION)`.
    pub const SHARING_VIOLATION: Self = Self(0x8007_0020);
}

/// A Win32 error of the cluster service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Win32Error(pub u32);

impl Win32Error {
    /// `ERROR_INVALID_PARAMETER`.
    pub const INVALID_PARAMETER: Self = Self(87);
    /// `ERROR_IO_PENDING`: begun, ask for the state.
    pub const IO_PENDING: Self = Self(997);
    /// `ERROR_DEPENDENT_RESOURCE_EXISTS` and its kin: the object is in a state that does not allow this.
    pub const INVALID_STATE: Self = Self(5023);
    /// `ERROR_RESOURCE_NOT_FOUND`.
    pub const RESOURCE_NOT_FOUND: Self = Self(5007);
    /// `ERROR_OBJECT_ALREADY_EXISTS`.
    pub const ALREADY_EXISTS: Self = Self(5010);
    /// `ERROR_GROUP_NOT_FOUND`.
    pub const GROUP_NOT_FOUND: Self = Self(5013);
    /// `ERROR_GROUP_NOT_AVAILABLE`.
    pub const GROUP_NOT_AVAILABLE: Self = Self(5012);
    /// `ERROR_HOST_NODE_NOT_AVAILABLE`.
    pub const NODE_NOT_AVAILABLE: Self = Self(5005);
    /// `ERROR_CLUSTER_NODE_NOT_FOUND`.
    pub const NODE_NOT_FOUND: Self = Self(5042);
    /// `ERROR_CLUSTER_NODE_PAUSED`.
    pub const NODE_PAUSED: Self = Self(5070);
}

/// What a caller can do about an error, and what the wire says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The method answers with this `ReturnValue`.
    Returned(ReturnCode),
    /// The call ends in a fault of WMI.
    Wmi(HResult),
    /// The call ends in a fault of the cluster service.
    Win32(Win32Error),
    /// No such object: a host, a VM on that host, a checkpoint, a job that is gone.
    NotFound,
    /// The host is down.
    Unreachable,
    /// What was asked of the estate itself makes no sense: a scenario, a call of a test.
    Invalid,
    /// The file system below the estate would not.
    Io,
}

/// An error that says where it happened; its cause is in [`StdError::source`], never in the text.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause. `context` is a lower-case fragment that names the place.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// The method answers with a code.
    pub fn returned(code: ReturnCode, context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Returned(code), context)
    }

    /// The cluster service answers with an error.
    pub fn win32(code: Win32Error, context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Win32(code), context)
    }

    /// No such object.
    pub fn not_found(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, context)
    }

    /// What the estate was asked makes no sense.
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, context)
    }

    /// The file system below would not.
    pub fn io(
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            kind: ErrorKind::Io,
            context: context.into(),
            source: Some(source.into()),
        }
    }

    /// What the wire says.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The `ReturnValue`, if the method has one for this.
    pub fn return_code(&self) -> Option<ReturnCode> {
        match self.kind {
            ErrorKind::Returned(code) => Some(code),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| {
            let source: &(dyn StdError + 'static) = source.as_ref();
            source
        })
    }
}
