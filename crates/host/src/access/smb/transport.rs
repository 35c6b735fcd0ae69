//! A TCP transport for the crate `smb` that does not wait: no Nagle, and each message in one write.
//!
//! The crate's own writes the length, then the message, and leaves the socket as it is; the second write then waits for the
//! server's delayed acknowledgement of the first, some 40 ms for each request.
//!
//! **Invariants.** A message is at most what its 24 bits of length can say.

use std::net::SocketAddr;
use std::pin::Pin;

use smb::transport::{IoVec, SmbTransport, SmbTransportRead, SmbTransportWrite, TransportError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

type Waiting<'a, T> = Pin<Box<dyn Future<Output = Result<T, TransportError>> + Send + 'a>>;

const LONGEST: usize = 0x00FF_FFFF;

/// A connection.
pub(super) struct QuickTcp {
    reader: Option<OwnedReadHalf>,
    writer: Option<OwnedWriteHalf>,
    peer: SocketAddr,
}

impl QuickTcp {
    pub(super) async fn connect(peer: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpStream::connect(peer).await?;
        socket.set_nodelay(true)?;
        let (reader, writer) = socket.into_split();
        Ok(Self {
            reader: Some(reader),
            writer: Some(writer),
            peer,
        })
    }
}

impl SmbTransport for QuickTcp {
    fn connect<'a>(&'a mut self, _server_name: &'a str, _address: SocketAddr) -> Waiting<'a, ()> {
        Box::pin(async { Err(TransportError::AlreadyConnected) })
    }

    fn default_port(&self) -> u16 {
        445
    }

    fn split(
        self: Box<Self>,
    ) -> Result<(Box<dyn SmbTransportRead>, Box<dyn SmbTransportWrite>), TransportError> {
        let peer = self.peer;
        Ok((
            Box::new(Self {
                reader: self.reader,
                writer: None,
                peer,
            }),
            Box::new(Self {
                reader: None,
                writer: self.writer,
                peer,
            }),
        ))
    }

    fn remote_address(&self) -> Result<SocketAddr, TransportError> {
        Ok(self.peer)
    }
}

impl SmbTransportWrite for QuickTcp {
    fn send_raw<'a>(&'a mut self, bytes: &'a [u8]) -> Waiting<'a, ()> {
        Box::pin(async move {
            let writer = self.writer.as_mut().ok_or(TransportError::NotConnected)?;
            writer.write_all(bytes).await?;
            Ok(())
        })
    }

    fn send<'a>(&'a mut self, data: &'a IoVec) -> Waiting<'a, ()> {
        Box::pin(async move {
            let length = data.total_size();
            if length > LONGEST {
                return Err(TransportError::InvalidMessage);
            }
            let mut message = Vec::with_capacity(length.saturating_add(4));
            let length = u32::try_from(length).map_err(|_| TransportError::InvalidMessage)?;
            message.extend_from_slice(&length.to_be_bytes());
            for part in data.iter() {
                message.extend_from_slice(part);
            }
            self.send_raw(&message).await
        })
    }
}

impl SmbTransportRead for QuickTcp {
    fn receive_exact<'a>(&'a mut self, bytes: &'a mut [u8]) -> Waiting<'a, ()> {
        Box::pin(async move {
            let reader = self.reader.as_mut().ok_or(TransportError::NotConnected)?;
            match reader.read_exact(bytes).await {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    Err(TransportError::NotConnected)
                }
                Err(error) => Err(error.into()),
            }
        })
    }
}
