"""Recipes: settings that follow from public numbers. What trains a given setting stands in
`federated`, not here.
"""
