"""What the OpenAPI document says beyond what the routes declare: tags, problems, scopes, examples."""
