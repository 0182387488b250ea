package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"xenkeep/chunkstore/object"
)

// errPresent is the answer to a conditional put of an object that exists.
var errPresent = errors.New("the object exists already")

// fail returns err with its class and a hint for the user.
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
		e.Hint = s.hint(op, answer)
	case untrusted(err):
		e.Class = err
		e.Hint = "if the server's certificate is signed by your own CA, name the certificate of the CA with --s3-ca-file"
		if errors.Is(err, http.ErrSchemeMismatch) {
			e.Hint = "the server does not use TLS: write s3:http:// instead of s3:https://"
		}
	default: // the connection
		e.Class = object.ErrUnavailable
	}
	if e.Class == nil {
		e.Class, e.Cause = e.Cause, nil
	}
	return e
}

// actions are the permissions that operations need (Service Authorization
// Reference, "Actions, resources, and condition keys for Amazon S3").
var actions = map[string]string{
	"put": "s3:PutObject", "get": "s3:GetObject", "stat": "s3:GetObject", "list": "s3:ListBucket", "delete": "s3:DeleteObject",
	"open": "s3:ListBucket", "create": "s3:ListBucket", "list versions of": "s3:ListBucketVersions", "lock": "s3:PutObjectRetention",
}

// hint returns the next step for the user after a server's refusal.
func (s *Store) hint(op string, answer minio.ErrorResponse) string {
	switch answer.Code {
	case "NoSuchBucket":
		return "correct the bucket's name in the location, or make the bucket: xenkeep makes none"
	case "InvalidAccessKeyId", "XAdminUserNotFound":
		return "the access key is unknown to the server: see AWS_ACCESS_KEY_ID, or the profile of AWS_PROFILE or --s3-profile"
	case "SignatureDoesNotMatch":
		return "the secret key does not belong to the access key: see AWS_SECRET_ACCESS_KEY, or the profile"
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired":
		return "the session's token has run out: get new credentials, or use a key or role that does not expire"
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded":
		return "the server's quota is used up, or its storage is full: raise it, or make room with xenkeep forget and xenkeep prune"
	case "RequestTimeTooSkewed", "RequestExpired":
		skew := s.Skew()
		word := "behind"
		if skew < 0 {
			skew, word = -skew, "ahead of"
		}
		return fmt.Sprintf("this machine's clock is %v %s the server's: set it, and keep it set (chrony, ntpd)", skew, word)
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException", "InvalidRegion":
		text := "the bucket is in another region: --s3-region"
		if answer.Region != "" {
			text += " " + answer.Region
		}
		return text
	case "PreconditionFailed":
		return "another object has this name, and --s3-no-overwrite replaces nothing: run xenkeep repair versions without it"
	case "InvalidObjectState":
		return "the object is in an archive class: restore it there, and keep packs in a class whose objects can be read immediately"
	case "InvalidStorageClass":
		return "the server has no storage class " + s.c.StorageClass + ": see --s3-storage-class"
	case "ObjectLockConfigurationNotFoundError":
		return noLock
	}
	switch {
	case strings.Contains(answer.Message, "ObjectLockConfiguration"):
		return noLock
	case op == "put" && s.c.Checksum != None && aboutChecksum(answer):
		return "the server does not accept the checksum that is sent with each object: use --s3-checksum none, or another kind"
	case answer.StatusCode == http.StatusBadRequest && strings.Contains(strings.ToLower(answer.Message), "region"):
		return "the server expects another region: --s3-region"
	case answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusUnauthorized:
		if v, err := s.client.GetCreds(); err == nil && v.AccessKeyID == "" {
			return "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile"
		}
		on := s.bucket
		if s.root != "" && op != "open" && op != "create" {
			on += "/" + s.root
		}
		return fmt.Sprintf("these credentials lack %s on %s", actions[op], on)
	}
	return ""
}

// aboutChecksum reports whether a server refuses an object because of the
// checksum header that was sent with it. Older servers have no error code of
// their own for it.
func aboutChecksum(answer minio.ErrorResponse) bool {
	if answer.StatusCode != http.StatusBadRequest && answer.StatusCode != http.StatusNotImplemented {
		return false
	}
	switch answer.Code {
	case "InvalidArgument", "InvalidRequest", "NotImplemented", "InvalidDigest", "MissingContentMD5", "BadRequest", "UnsupportedHeader", "":
	default:
		return false
	}
	text := strings.ToLower(answer.Code + " " + answer.Message)
	return answer.Code == "" || strings.Contains(text, "checksum") || strings.Contains(text, "x-amz-") || strings.Contains(text, "header") ||
		strings.Contains(text, "content-md5") || answer.Code == "NotImplemented"
}

const noLock = "the bucket has no object lock: that is switched on when a bucket is made"

// classOf returns the sentinel for a server's error answer, or nil. The codes
// are those of the Amazon S3 API Reference, "Error responses"; those with X are
// of MinIO's server.
func classOf(answer minio.ErrorResponse) error {
	switch answer.Code {
	case "NoSuchBucket":
		return object.ErrNoRepository
	case "NoSuchKey", "NoSuchVersion":
		return object.ErrNotFound
	case "InvalidRange":
		return object.ErrShort
	case "QuotaExceeded", "InsufficientStorage", "EntityTooLarge", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded":
		return object.ErrNoSpace
	case "AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId", "SignatureDoesNotMatch",
		"ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed",
		"XAdminUserNotFound": // versitygw's InvalidAccessKeyId
		return object.ErrPermission
	case "RequestTimeTooSkewed", "RequestExpired":
		return object.ErrClock
	case "PreconditionFailed":
		return errPresent
	case "NotImplemented", "MethodNotAllowed":
		return object.ErrUnsupported
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict",
		"RequestTimeout", "Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded",
		"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody":
		return object.ErrUnavailable
	}
	switch code := answer.StatusCode; {
	case code == http.StatusPreconditionFailed:
		return errPresent
	case code == http.StatusNotImplemented, code == http.StatusMethodNotAllowed:
		return object.ErrUnsupported
	case code == http.StatusNotFound && (answer.Code == "" || answer.Code == "NotFound"):
		return object.ErrNotFound
	case code == http.StatusRequestedRangeNotSatisfiable:
		return object.ErrShort
	case code == http.StatusInsufficientStorage:
		return object.ErrNoSpace
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return object.ErrPermission
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests,
		code >= 500 && code != http.StatusHTTPVersionNotSupported:
		return object.ErrUnavailable
	}
	return nil
}

// untrusted reports whether the cause is the server's certificate, which is not
// a temporary failure.
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
