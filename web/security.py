"""What responses tell browsers: content policies, and the headers that all have in common."""

from __future__ import annotations

#: for pages: no inline script or style, no other origin; charts run through Vega's interpreter, which needs no eval
PAGE_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
#: for everything else: whatever a browser takes it for, it loads and runs nothing
DATA_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

EVERY_RESPONSE: dict[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def content_security_policy(content_type: str) -> str:
    """The policy of a response of this Content-Type."""
    return PAGE_POLICY if content_type.startswith("text/html") else DATA_POLICY
