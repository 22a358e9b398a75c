import Testing
import XRayAPI

@Suite struct APIErrorTests {
    // If this fails, some SDK sees an unknown error instead of the name and message it looks for.
    @Test func `an error body has all three spellings and the modelled members`() {
        #expect(
            String(decoding: APIError.invalidRequest("GroupName is required").body, as: UTF8.self)
                == #"{"__type":"InvalidRequestException","message":"GroupName is required","Message":"GroupName is required"}"#
        )
        #expect(
            String(decoding: APIError.resourceNotFound("No \"x\"\n", resourceName: "arn:aws:x").body, as: UTF8.self)
                == #"{"__type":"ResourceNotFoundException","message":"No \"x\"\n","Message":"No \"x\"\n","ResourceName":"arn:aws:x"}"#
        )
    }

    // If this fails, SDKs do not retry what they should, or retry what they should not.
    @Test(arguments: [
        (APIError.invalidRequest(""), "InvalidRequestException", 400),
        (.throttled(), "ThrottledException", 429),
        (.resourceNotFound("", resourceName: ""), "ResourceNotFoundException", 404),
        (.tooManyTags("", resourceName: ""), "TooManyTagsException", 400),
        (.ruleLimitExceeded(""), "RuleLimitExceededException", 400),
        (.malformedPolicyDocument(""), "MalformedPolicyDocumentException", 400),
        (.lockoutPrevention(""), "LockoutPreventionException", 400),
        (.invalidPolicyRevisionID(""), "InvalidPolicyRevisionIdException", 400),
        (.policySizeLimitExceeded(""), "PolicySizeLimitExceededException", 400),
        (.policyCountLimitExceeded(""), "PolicyCountLimitExceededException", 400),
        (.serialization(""), "SerializationException", 400),
        (.malformedHTTPRequest(""), "MalformedHttpRequestException", 400),
        (.requestEntityTooLarge(), "RequestEntityTooLargeException", 413),
        (.unknownOperation(), "UnknownOperationException", 404),
        (.requestTimeout(), "RequestTimeoutException", 408),
        (.internalFailure(), "InternalFailure", 500),
        (.serviceUnavailable(), "ServiceUnavailable", 503),
        (.missingAuthenticationToken, "MissingAuthenticationTokenException", 403),
        (.incompleteSignature(""), "IncompleteSignatureException", 403),
        (.unrecognizedClient, "UnrecognizedClientException", 403),
        (.expiredToken, "ExpiredTokenException", 403),
        (.invalidSignature(""), "InvalidSignatureException", 403),
        (.accessDenied(""), "AccessDeniedException", 403),
    ])
    func `every error has its name and status`(error: APIError, name: String, status: Int) {
        #expect(error.name == name)
        #expect(error.status == status)
        #expect((error.retryAfterSeconds != nil) == (status == 429 || status == 503))
    }
}
