package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"github.com/minio/minio-go/v7"

	"xenkeep/chunkstore/object"
)

// fail gives err its class.
func (s *Store) fail(ctx context.Context, op, name string, err error) *object.Error {
	e := &object.Error{Op: op, Name: name, Cause: err}
	var answer minio.ErrorResponse
	switch {
	case ctx.Err() != nil:
		e.Class = ctx.Err()
	case errors.As(err, &answer) && (answer.StatusCode != 0 || answer.Code != ""):
		e.Class = classOf(answer)
		e.Cause = fmt.Errorf("%s: %s", answer.Code, answer.Message)
		if errors.Is(e.Class, object.ErrNoRepository) {
			e.Cause = fmt.Errorf("no bucket %s", s.bucket)
		}
	case untrusted(err):
		e.Class = err
	default: // the connection
		e.Class = object.ErrUnavailable
	}
	if e.Class == nil {
		e.Class, e.Cause = e.Cause, nil
	}
	return e
}

// classOf is the sentinel for a server's error answer, or nil. The codes are
// those of the Amazon S3 API Reference, "Error responses"; those with X are of
// MinIO's server.
func classOf(answer minio.ErrorResponse) error {
	switch answer.Code {
	case "NoSuchBucket":
		return object.ErrNoRepository
	case "NoSuchKey":
		return object.ErrNotFound
	case "InvalidRange":
		return object.ErrShort
	case "QuotaExceeded", "EntityTooLarge", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded":
		return object.ErrNoSpace
	case "AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId", "SignatureDoesNotMatch",
		"ExpiredToken", "InvalidToken", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed",
		"XAdminUserNotFound": // versitygw's InvalidAccessKeyId
		return object.ErrPermission
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable", "OperationAborted",
		"RequestTimeout", "Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded",
		"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody":
		return object.ErrUnavailable
	}
	switch code := answer.StatusCode; {
	case code == http.StatusNotFound && (answer.Code == "" || answer.Code == "NotFound"):
		return object.ErrNotFound
	case code == http.StatusRequestedRangeNotSatisfiable:
		return object.ErrShort
	case code == http.StatusInsufficientStorage:
		return object.ErrNoSpace
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return object.ErrPermission
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests,
		code >= 500 && code != http.StatusNotImplemented && code != http.StatusHTTPVersionNotSupported:
		return object.ErrUnavailable
	}
	return nil
}

// untrusted tells whether the server's certificate is the trouble, which does
// not pass by itself.
func untrusted(err error) bool {
	var (
		verify    *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
	)
	return errors.As(err, &verify) || errors.As(err, &authority) || errors.As(err, &host) ||
		errors.As(err, &invalid) || errors.As(err, &record) || errors.Is(err, http.ErrSchemeMismatch)
}
