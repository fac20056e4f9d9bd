//! One trace over several processes: the W3C trace context goes out with a request and is taken up at the other end.

use std::task::{Context, Poll};

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{MetadataKey, MetadataMap};
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::instrument::Instrumented;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A request that carries the trace of the current span, if there is one: `client.pin(traced(PinCall { .. }))`.
pub fn traced<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let context = tracing::Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut Outgoing(request.metadata_mut()));
    request
}

struct Outgoing<'a>(&'a mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

struct Incoming<'a>(&'a http::HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Runs each request in a span named by its method, below the caller's span.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = TraceService<S>;

    fn layer(&self, inner: S) -> TraceService<S> {
        TraceService(inner)
    }
}

#[derive(Clone, Debug)]
pub struct TraceService<S>(S);

impl<S, B> Service<http::Request<B>> for TraceService<S>
where
    S: Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let span = tracing::info_span!("grpc", method = request.uri().path());
        let context = TraceContextPropagator::new().extract(&Incoming(request.headers()));
        if context.span().span_context().is_valid() {
            // Fails only when no traces are collected, and then there is nothing to join.
            let _ = span.set_parent(context);
        }
        let entered = span.enter();
        let future = self.0.call(request);
        drop(entered);
        future.instrument(span)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tower::ServiceExt as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn current_trace() -> String {
        tracing::Span::current().context().span().span_context().trace_id().to_string()
    }

    /// Goal: the trace a request was sent in is the trace it is handled in, and without one nothing is sent.
    #[test]
    fn a_trace_crosses_the_wire() {
        assert!(traced(()).metadata().get("traceparent").is_none());
        let tracer = SdkTracerProvider::builder().build().tracer("test");
        let subscriber = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer));
        tracing::subscriber::with_default(subscriber, || {
            let (sent, trace) = tracing::info_span!("sender").in_scope(|| (traced(()), current_trace()));
            let mut request = http::Request::new(());
            *request.headers_mut() = sent.into_parts().0.into_headers();
            let handler =
                tower::service_fn(|_: http::Request<()>| async { Ok::<_, std::convert::Infallible>(current_trace()) });
            let seen = futures::executor::block_on(TraceLayer.layer(handler).oneshot(request)).unwrap();
            assert_eq!(seen, trace);
            assert_ne!(seen, "0".repeat(32));
        });
    }
}
