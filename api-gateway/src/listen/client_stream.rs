//! The byte stream of one client. For HTTP/1 it hands hyper whole request heads only, each with `TE: trailers` added
//! (see `heads`), lets an answer without a body have its `Trailer` header (see `StandIn`), and closes so that a client
//! that is still sending can read its answer. It ends connections that send a head too slowly or take no answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::header::TRAILER;
use http::{HeaderName, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::io::poll_read_buf;

use super::heads::{Chunks, Framing, Head, TE_TRAILERS, leading_line_ends, read_head};

/// A client that takes nothing of its answer for this long is gone (`attack:HT3`).
const WRITE_STALL_DEADLINE: Duration = Duration::from_secs(120);
const READ_AHEAD_BYTES: usize = 8 * 1024;
/// After the last answer, what the client still sends is read for so long and so far: a socket that is closed with
/// unread bytes takes the answer back from the client.
const LINGER_DEADLINE: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Empty streams of the original name their trailer, and hyper writes no `Trailer` header where there is no body. So
/// such an answer gets another header of the same length, and the line is put right on its way to the socket.
#[derive(Clone, Default)]
pub struct StandIn(Arc<AtomicBool>);

const STAND_IN_NAME: HeaderName = HeaderName::from_static("trailed");
const STAND_IN_LINE: &[u8] = b"\r\nTrailed: ";
const TRAILER_LINE: &[u8] = b"\r\nTrailer: ";

impl StandIn {
    /// Prepares an answer for hyper; the next line of that name is the one to put right.
    pub fn take_place<B>(&self, answer: &mut Response<B>) {
        if answer.status() != StatusCode::NO_CONTENT {
            return;
        }
        if let Some(value) = answer.headers_mut().remove(TRAILER) {
            answer.headers_mut().insert(STAND_IN_NAME, value);
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn is_expected(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the next bytes from the client are.
enum State {
    /// A request head, or the line ends before one.
    Head,
    Body {
        left: u64,
    },
    Chunked(Chunks),
    /// Nobody here looks at them: HTTP/2, or a body that hyper refuses too.
    Opaque,
    /// Nothing more is read: the last head was refused, or came too slowly.
    Ended,
}

/// How much of a head is taken, and for how long it may take to arrive.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    pub bytes: usize,
    /// From the first byte to the last; zero: no limit.
    pub deadline: Duration,
}

pub struct ClientStream<S> {
    socket: S,
    state: State,
    limits: HeadLimits,
    /// As it came, not looked at yet.
    received: BytesMut,
    /// For hyper.
    ready: BytesMut,
    /// Runs while a head is begun and not whole.
    head_deadline: Option<Pin<Box<Sleep>>>,
    /// Runs while the socket takes nothing.
    write_deadline: Option<Pin<Box<Sleep>>>,
    stand_in: StandIn,
    /// Bytes of `TRAILER_LINE` that the socket has taken.
    replaced: usize,
    closing: Closing,
}

/// How far the close has come.
enum Closing {
    Open,
    /// The client was told, and may still be sending.
    Lingering {
        deadline: Pin<Box<Sleep>>,
        discarded: usize,
    },
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientStream<S> {
    /// HTTP/1, of which `received` was read already.
    pub fn http1(socket: S, received: BytesMut, limits: HeadLimits, stand_in: StandIn) -> ClientStream<S> {
        ClientStream::new(socket, received, limits, State::Head, stand_in)
    }

    /// Anything else, passed through.
    pub fn opaque(socket: S, received: BytesMut) -> ClientStream<S> {
        let limits = HeadLimits { bytes: 0, deadline: Duration::ZERO };
        ClientStream::new(socket, received, limits, State::Opaque, StandIn::default())
    }

    fn new(socket: S, received: BytesMut, limits: HeadLimits, state: State, stand_in: StandIn) -> ClientStream<S> {
        ClientStream {
            socket,
            state,
            limits,
            received,
            ready: BytesMut::new(),
            head_deadline: None,
            write_deadline: None,
            stand_in,
            replaced: 0,
            closing: Closing::Open,
        }
    }

    /// Moves what can be moved from `received` to `ready`.
    fn process(&mut self) {
        while !self.received.is_empty() {
            match &mut self.state {
                State::Head => {
                    self.received.advance(leading_line_ends(&self.received));
                    if self.received.is_empty() {
                        return;
                    }
                    match read_head(&self.received) {
                        Head::Partial if self.received.len() > self.limits.bytes => return self.refuse_too_large(),
                        Head::Partial => return,
                        Head::Whole { length, .. } if length > self.limits.bytes => return self.refuse_too_large(),
                        Head::Whole { length, framing, is_http_11 } => self.take_head(length, framing, is_http_11),
                        Head::Refused(_) => return self.refuse_as_malformed(),
                    }
                }
                State::Body { left } => {
                    let step = (*left).min(self.received.len() as u64);
                    *left -= step;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                    self.pass_on(step as usize);
                }
                State::Chunked(chunks) => {
                    let step = chunks.advance(&self.received);
                    match chunks {
                        Chunks::Done => self.state = State::Head,
                        Chunks::Broken => self.state = State::Opaque,
                        _ => {}
                    }
                    self.pass_on(step);
                }
                State::Opaque => self.pass_on(self.received.len()),
                State::Ended => return self.received.clear(),
            }
        }
    }

    fn pass_on(&mut self, bytes: usize) {
        let part = self.received.split_to(bytes);
        if self.ready.is_empty() {
            self.ready = part;
        } else {
            self.ready.extend_from_slice(&part);
        }
    }

    fn take_head(&mut self, length: usize, framing: Framing, is_http_11: bool) {
        self.head_deadline = None;
        let head = self.received.split_to(length);
        let without_empty_line = &head[..length - 2];
        self.ready.reserve(length + TE_TRAILERS.len());
        self.ready.extend_from_slice(without_empty_line);
        if is_http_11 {
            self.ready.extend_from_slice(TE_TRAILERS);
        }
        self.ready.extend_from_slice(b"\r\n");
        self.state = match framing {
            Framing::Empty => State::Head,
            Framing::Sized(left) => State::Body { left },
            Framing::Chunked => State::Chunked(Chunks::default()),
        };
    }

    /// hyper answers this with 400 and closes.
    fn refuse_as_malformed(&mut self) {
        self.ready.extend_from_slice(b"\0\r\n\r\n");
        self.end();
    }

    /// hyper answers a head above its own limit, which is ours, with 431 and closes.
    fn refuse_too_large(&mut self) {
        self.ready.extend_from_slice(b"GET / HTTP/1.1\r\nX: ");
        self.ready.resize(self.ready.len() + self.limits.bytes, b'x');
        self.ready.extend_from_slice(b"\r\n\r\n");
        self.end();
    }

    fn end(&mut self) {
        self.state = State::Ended;
        self.received.clear();
        self.head_deadline = None;
    }

    /// Reads straight into hyper's buffer, and takes back what lies behind the body.
    fn poll_read_body(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        let new = &buffer.filled()[before..];
        let step = match &mut self.state {
            State::Body { left } => {
                let step = (*left).min(new.len() as u64);
                *left -= step;
                if *left == 0 {
                    self.state = State::Head;
                }
                step as usize
            }
            State::Chunked(chunks) => {
                let step = chunks.advance(new);
                match chunks {
                    Chunks::Done => {
                        self.state = State::Head;
                        step
                    }
                    Chunks::Broken => {
                        self.state = State::Opaque;
                        new.len()
                    }
                    _ => step,
                }
            }
            State::Head | State::Opaque | State::Ended => new.len(),
        };
        self.received.extend_from_slice(&new[step..]);
        buffer.set_filled(before + step);
        Poll::Ready(Ok(()))
    }

    /// Whether the begun head took too long. Starts the timer when there is none.
    fn poll_head_deadline(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.received.is_empty() || self.limits.deadline.is_zero() {
            return Poll::Pending;
        }
        let deadline = self.limits.deadline;
        let timer = self.head_deadline.get_or_insert_with(|| Box::pin(sleep(deadline)));
        timer.as_mut().poll(context)
    }

    /// Writes up to the stand-in, or the line it stands for. What is taken of the latter counts as taken of the former.
    fn poll_write_replacing(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaced == 0 {
            let at = bytes.windows(STAND_IN_LINE.len()).position(|window| window == STAND_IN_LINE);
            match at {
                Some(0) => {}
                Some(at) => return Pin::new(&mut self.socket).poll_write(context, &bytes[..at]),
                None => return Pin::new(&mut self.socket).poll_write(context, bytes),
            }
        }
        let taken = ready!(Pin::new(&mut self.socket).poll_write(context, &TRAILER_LINE[self.replaced..]))?;
        self.replaced += taken;
        if self.replaced == TRAILER_LINE.len() {
            self.replaced = 0;
            self.stand_in.0.store(false, Ordering::Relaxed);
        }
        Poll::Ready(Ok(taken))
    }

    /// Whether the client may be sending something that nobody will read.
    fn may_be_sending(&self) -> bool {
        match self.state {
            State::Head => !self.received.is_empty() || !self.ready.is_empty(),
            State::Body { .. } | State::Chunked(_) | State::Ended => true,
            // HTTP/2 says goodbye by itself.
            State::Opaque => false,
        }
    }

    /// Reads and forgets until the client has closed too, or long enough.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Closing::Lingering { deadline, discarded } = &mut self.closing else { return Poll::Ready(()) };
        let mut scratch = [0; READ_AHEAD_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.socket).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(()),
                Poll::Ready(Ok(())) => *discarded += buffer.filled().len(),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return deadline.as_mut().poll(context),
            }
            if *discarded > LINGER_BYTES {
                return Poll::Ready(());
            }
        }
    }

    /// Passes on what a write did, unless the socket has been taking nothing for too long.
    fn watch_write<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_deadline = None;
            return result;
        }
        let timer = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL_DEADLINE)));
        match timer.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                timer.as_mut().reset(Instant::now() + WRITE_STALL_DEADLINE);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take its answer")))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            this.process();
            if !this.ready.is_empty() {
                let step = this.ready.len().min(buffer.remaining());
                buffer.put_slice(&this.ready[..step]);
                this.ready.advance(step);
                return Poll::Ready(Ok(()));
            }
            match this.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Opaque | State::Body { .. } | State::Chunked(_) => {
                    return this.poll_read_body(context, buffer);
                }
                State::Head => {
                    this.received.reserve(READ_AHEAD_BYTES);
                    match poll_read_buf(Pin::new(&mut this.socket), context, &mut this.received)? {
                        // A connection that ends within a head is simply over; hyper has seen nothing of it.
                        Poll::Ready(0) => {
                            this.end();
                            return Poll::Ready(Ok(()));
                        }
                        Poll::Ready(_) => {}
                        Poll::Pending => {
                            ready!(this.poll_head_deadline(context));
                            this.end();
                            return Poll::Ready(Ok(()));
                        }
                    }
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = if self.stand_in.is_expected() {
            self.poll_write_replacing(context, bytes)
        } else {
            Pin::new(&mut self.socket).poll_write(context, bytes)
        };
        self.watch_write(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.stand_in.is_expected()
            && let Some(first) = parts.iter().find(|part| !part.is_empty())
        {
            return self.poll_write(context, first);
        }
        let result = Pin::new(&mut self.socket).poll_write_vectored(context, parts);
        self.watch_write(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.socket).poll_flush(context);
        self.watch_write(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Closing::Open = self.closing {
            ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
            self.closing = if self.may_be_sending() {
                Closing::Lingering { deadline: Box::pin(sleep(LINGER_DEADLINE)), discarded: 0 }
            } else {
                Closing::Closed
            };
        }
        ready!(self.poll_linger(context));
        self.closing = Closing::Closed;
        Poll::Ready(Ok(()))
    }
}
