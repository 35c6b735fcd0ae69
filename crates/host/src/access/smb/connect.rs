//! Connecting to a share: transport, dialect, encryption, account.

use std::net::ToSocketAddrs;

use smb::connection::{ConnectionConfig, EncryptionMode};
use smb::{Connection, Guid, UncPath};

use super::names::{Place, told};
use super::{Share, SmbEncryption, SmbOptions, transport};
use crate::{Error, ErrorKind, Result};

pub(super) async fn connect(options: SmbOptions, place: Place, what: String) -> Result<Share> {
    let server = place.server.clone();
    let port = place.port;
    let found =
        tokio::task::spawn_blocking(move || (server.as_str(), port).to_socket_addrs()).await;
    let address = found
        .ok()
        .and_then(std::result::Result::ok)
        .and_then(|mut all| all.next())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Unreachable,
                format!("{what}: the name has no address"),
            )
        })?;
    let transport = transport::QuickTcp::connect(address)
        .await
        .map_err(|error| Error::with_source(ErrorKind::Unreachable, what.clone(), error))?;
    let config = ConnectionConfig {
        timeout: Some(options.timeout),
        min_dialect: Some(smb::Dialect::Smb030),
        encryption_mode: match options.encryption {
            SmbEncryption::Required => EncryptionMode::Required,
            SmbEncryption::AsServerWants => EncryptionMode::Allowed,
        },
        smb2_only_negotiate: true,
        ..ConnectionConfig::default()
    };
    let failed = |error: smb::Error| told(error, what.clone());
    let connection =
        Connection::from_transport(Box::new(transport), &place.server, Guid::generate(), config)
            .await
            .map_err(failed)?;
    let identity = sspi::AuthIdentity {
        username: sspi::Username::parse(&options.account.user).map_err(|error| {
            Error::with_source(
                ErrorKind::Invalid,
                format!("{what}: the account's name"),
                error,
            )
        })?,
        password: sspi::Secret::from(options.account.password.clone()),
    };
    let session = connection.authenticate(identity).await.map_err(failed)?;
    let unc = UncPath::new(&place.server)
        .and_then(|unc| unc.with_share(&place.share))
        .map_err(failed)?;
    let tree = session.tree_connect(&unc).await.map_err(failed)?;
    Ok(Share {
        tree,
        _session: session,
        _connection: connection,
    })
}
