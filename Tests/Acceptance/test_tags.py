"""Tags of groups and of the sampling rule Default."""

import pytest


def test_tags_with_boto3(account):
    xray = account.boto3()
    arn = xray.create_group(GroupName="tagged")["Group"]["GroupARN"]
    assert xray.list_tags_for_resource(ResourceARN=arn)["Tags"] == []
    xray.tag_resource(ResourceARN=arn, Tags=[{"Key": "b", "Value": "1"}, {"Key": "B", "Value": ""}, {"Key": "Größe_.:/=+-@ 9", "Value": "große Ä"}])
    xray.tag_resource(ResourceARN=arn, Tags=[{"Key": "b", "Value": "2"}])
    xray.tag_resource(ResourceARN=arn, Tags=[])
    pages = xray.get_paginator("list_tags_for_resource").paginate(ResourceARN=arn)
    assert [tag for page in pages for tag in page["Tags"]] == [
        {"Key": "B", "Value": ""}, {"Key": "Größe_.:/=+-@ 9", "Value": "große Ä"}, {"Key": "b", "Value": "2"}], "sorted, keys are case-sensitive"
    xray.untag_resource(ResourceARN=arn, TagKeys=["b", "absent"])
    assert [tag["Key"] for tag in xray.list_tags_for_resource(ResourceARN=arn)["Tags"]] == ["B", "Größe_.:/=+-@ 9"]


def test_tags_with_the_cli(account):
    default = f"arn:aws:xray:us-east-1:{account.account}:group/Default"
    rule = f"arn:aws:xray:us-east-1:{account.account}:sampling-rule/Default"
    for arn in (default, rule):
        account.cli("tag-resource", "--resource-arn", arn, "--tags", "Key=stage,Value=prod")
        assert account.cli("list-tags-for-resource", "--resource-arn", arn)["Tags"] == [{"Key": "stage", "Value": "prod"}]
        account.cli("untag-resource", "--resource-arn", arn, "--tag-keys", "stage")
        assert account.cli("list-tags-for-resource", "--resource-arn", arn)["Tags"] == []


def test_at_most_fifty_tags_and_nothing_half_done(account):
    xray = account.boto3()
    arn = xray.create_group(GroupName="full")["Group"]["GroupARN"]
    xray.tag_resource(ResourceARN=arn, Tags=[{"Key": f"k{number}", "Value": "v"} for number in range(49)])
    with pytest.raises(xray.exceptions.TooManyTagsException) as caught:
        xray.tag_resource(ResourceARN=arn, Tags=[{"Key": "k0", "Value": "new"}, {"Key": "k49", "Value": "v"}, {"Key": "k50", "Value": "v"}])
    assert caught.value.response["ResourceName"] == arn
    tags = {tag["Key"]: tag["Value"] for tag in xray.list_tags_for_resource(ResourceARN=arn)["Tags"]}
    assert len(tags) == 49 and tags["k0"] == "v"
    xray.tag_resource(ResourceARN=arn, Tags=[{"Key": "k0", "Value": "new"}, {"Key": "k49", "Value": "v"}])
    answer = account.call("CreateGroup", {"GroupName": "more", "Tags": [{"Key": f"k{number}", "Value": ""} for number in range(51)]})
    assert (answer.status, answer.error) == (400, "TooManyTagsException")
    assert account.call("GetGroup", {"GroupName": "more"}).message == "Group not found."


def test_resources_that_are_not_there(account, server):
    other = server.new_account()
    arn = account.read("CreateGroup", {"GroupName": "mine"})["Group"]["GroupARN"]
    base = f"arn:aws:xray:us-east-1:{account.account}:"
    requests = {"TagResource": {"Tags": []}, "UntagResource": {"TagKeys": []}, "ListTagsForResource": {}}
    for operation, request in requests.items():
        for caller, resource in (
            (other, arn), (account, base + "group/nobody"), (account, base + "group/mine"), (account, base + "sampling-rule/nobody"),
            (account, base + "insight/x"), (account, f"arn:aws:s3:us-east-1:{account.account}:group/Default"),
        ):
            answer = caller.call(operation, {"ResourceARN": resource, **request})
            assert (answer.status, answer.error) == (404, "ResourceNotFoundException"), (operation, resource, answer)
            assert answer.json["ResourceName"] == resource
        answer = account.call(operation, {"ResourceARN": "no arn", **request})
        assert (answer.status, answer.message) == (400, "ResourceARN is not an ARN")
